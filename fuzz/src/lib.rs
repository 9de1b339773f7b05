//! What the fuzz targets do with their input, one module a target; `targets/` has their entry points.
//!
//! # Guarantees
//!
//! - Everything goes through public functions of the crates, as a hostile file would; no crate has
//!   an entry that exists for fuzzing alone.
//! - Checksums and signatures are made right after mutation, by an implementation of the formats
//!   that shares nothing with the crates', so that the code behind them is reached.
//! - Targets that write do so in a temporary directory beneath a canary, and fail when anything
//!   outside the tree was touched.
//!
//! # Not here
//!
//! Building and running them: `cargo xtask fuzz`.

pub mod apply;
pub mod bundle;
pub mod classify;
pub mod delta;
pub mod esp;
pub mod image;
pub mod journal;
pub mod path;
pub mod sandbox;
pub mod seeds;
pub mod text;

// The client crate that has these parsers brings a TLS stack, minutes of building; the parsers need
// none of it.
#[allow(dead_code, unreachable_pub, reason = "another crate's modules, of which a part is used")]
#[path = "../../crates/wire/src/limits.rs"]
mod limits;
#[allow(dead_code, unreachable_pub, reason = "another crate's modules, of which a part is used")]
#[path = "../../crates/wire/src/token.rs"]
mod token;
#[allow(dead_code, unreachable_pub, reason = "another crate's modules, of which a part is used")]
#[path = "../../crates/wire/src/tree_text.rs"]
mod tree_text;
