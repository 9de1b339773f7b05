//! The repository's HTTP interface: messages, limits, and the client that speaks it.
//!
//! # Guarantees
//!
//! - A [`Client`] sends its credential only to a server whose certificate was issued by the one
//!   certificate authority that the [`Token`] pins; no system trust store is ever consulted.
//! - [`Client::push_bundle`] sends only frames that the repository lacks, and can be repeated
//!   after any interruption. [`Client::download_bundle`] goes on where it stopped.
//! - No reply and no file makes the client allocate more than a constant of [`limits`].
//! - [`tree_text`] has one spelling per tree: what it reads is what it would write.
//!
//! # Not here
//!
//! The server (`vireo-repo`), and trust in what was fetched: a bundle is to be believed only as a
//! `vireo_delta::Bundle<Verified>`. The client reads no environment, so proxies are not used.
//!
//! # Trust at first contact
//!
//! [`Client::connect`] asks `GET /v1/ca` without checking the server's certificate and without
//! sending anything secret. The answer is used only if its BLAKE3 digest is the token's. All
//! later requests trust that authority alone.
//!
//! # Example
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use vireo_wire::{Client, ErrorKind};
//!
//! let token = std::fs::read_to_string("admin-token")?.parse()?;
//! let client = Client::connect("https://repo.example:8443", &token).await?;
//! match client.push_bundle(&"web".parse()?, &std::fs::read("update.vireo")?, &|_| ()).await {
//!     Ok(reply) => println!("web@{} has tree {}", reply.version.number, reply.version.tree),
//!     Err(error) if error.kind() == ErrorKind::Conflict => println!("capture again: {error}"),
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok(())
//! # }
//! ```

pub mod api;
mod client;
pub mod disk;
mod error;
pub mod limits;
pub mod pipe;
mod token;
pub mod tree_text;

pub use client::{Client, Progress};
pub use error::{ErrorKind, WireError};
pub use token::{Secret, Token, TokenError, TokenKind};
