//! The client: connections, requests, retries, and the short calls.

mod content;
mod push;

use std::error::Error;
use std::fmt;
use std::time::Duration;

use reqwest::header::AUTHORIZATION;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vireo_model::{Digest, ImageName, Tree};

use crate::api::{
    EnrollReply, EnrollRequest, ErrorReply, ImageList, ImageLog, ImageSummary, InstanceEntry,
    InstanceId, InstanceList, Next, ReceiptPost, VerifyReply,
};
use crate::error::{ErrorKind, WireError};
use crate::limits::{
    BUILD_TIMEOUT, CALL_TIMEOUT, CONNECT_TIMEOUT, MAX_REPLY_LEN, MAX_TREE_TEXT_LEN, STALL_TIMEOUT,
    WAIT_MAX,
};
use crate::token::{Secret, Token};
use crate::tree_text;

/// Longest CA certificate accepted, in bytes of PEM.
const MAX_CA_LEN: usize = 64 << 10;

/// Waits before the second, third and fourth try of a call that may be repeated.
const RETRY_DELAYS: [Duration; 3] =
    [Duration::from_millis(200), Duration::from_millis(800), Duration::from_millis(3200)];

/// How far a transfer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes done, of those that count below.
    pub done: u64,
    /// Bytes in all, if known.
    pub total: Option<u64>,
}

/// A connection to one repository with one credential. Cheap to clone.
///
/// Calls that may be repeated without harm are tried up to four times, within about four seconds,
/// when the server cannot be reached. Every call has a deadline; downloads of disk images, bundles and
/// listings have one for standing still instead.
///
/// # Errors
///
/// All calls fail with a [`WireError`] whose [`kind`](WireError::kind) says what to do:
/// `Unreachable`, `Unauthorised`, `Server` and `Protocol` are possible everywhere; what else a call
/// can give is said there.
#[derive(Clone)]
pub struct Client {
    base: Url,
    ca_pem: String,
    credential: Option<Secret>,
    /// For calls with a deadline of their own.
    calls: reqwest::Client,
    /// For streams: no deadline for the whole, but for standing still.
    streams: reqwest::Client,
}

/// Whether a call that broke may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    Yes,
    No,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("url", &self.base.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the repository at `url` (`https://HOST:PORT`) for the first time: fetches its CA
    /// certificate and holds it against the token's pin.
    ///
    /// # Errors
    ///
    /// `Refused` if `url` is not an `https` address, `Unauthorised` if the server's CA is not the
    /// one that the token pins.
    pub async fn connect(url: &str, token: &Token) -> Result<Self, WireError> {
        let base = parse_url(url)?;
        let first =
            build(common(CONNECT_TIMEOUT * 2).tls_danger_accept_invalid_certs(true), &base)?;
        let stranger = Self {
            base,
            ca_pem: String::new(),
            credential: None,
            calls: first.clone(),
            streams: first,
        };
        let ca_pem = stranger.fetch_ca().await?;
        let step = "trust the repository";
        let der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).map_err(|error| {
            stranger.protocol(step, "its CA certificate is not PEM").caused_by(error)
        })?;
        if Digest::of(&der) != token.ca {
            return Err(WireError::new(
                ErrorKind::Unauthorised,
                format!(
                    "cannot {step} at {}: its CA certificate is not the one that the token pins; \
                     somebody is in between, or the token is another repository's: get a token with \
                     `vireo-repo token create`",
                    stranger.base
                ),
            ));
        }
        Self::with_ca(url, &ca_pem, &token.secret)
    }

    /// A client for the repository at `url` that trusts only `ca_pem` and shows `credential`.
    /// Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// `Refused` if `url` is not an `https` address or `ca_pem` is no certificate.
    pub fn with_ca(url: &str, ca_pem: &str, credential: &Secret) -> Result<Self, WireError> {
        let base = parse_url(url)?;
        let authority = || {
            reqwest::Certificate::from_pem(ca_pem.as_bytes()).map_err(|error| {
                let message = format!("cannot use the CA certificate for {base}: it is not PEM");
                WireError::new(ErrorKind::Refused, message).caused_by(error)
            })
        };
        let calls = build(common(CALL_TIMEOUT).tls_certs_only([authority()?]), &base)?;
        let streams = reqwest::Client::builder().read_timeout(STALL_TIMEOUT);
        let streams = build(harden(streams).tls_certs_only([authority()?]), &base)?;
        Ok(Self {
            base,
            ca_pem: ca_pem.to_owned(),
            credential: Some(credential.clone()),
            calls,
            streams,
        })
    }

    /// The repository's address.
    #[must_use]
    pub fn url(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// The CA certificate that is trusted, PEM; keep it for [`Client::with_ca`].
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// All images.
    ///
    /// # Errors
    ///
    /// As the type says.
    pub async fn images(&self) -> Result<Vec<ImageSummary>, WireError> {
        let list: ImageList = self.get("list the images", &["images"]).await?;
        Ok(list.images)
    }

    /// An image's versions, ignore list and trusted keys.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such image.
    pub async fn log(&self, image: &ImageName) -> Result<ImageLog, WireError> {
        self.get("read the image's log", &["images", image.as_str()]).await
    }

    /// The tree of a version, read from its listing; its digest has been checked against the
    /// listing's own, not against what the caller expects.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such version.
    pub async fn tree(&self, image: &ImageName, version: u64) -> Result<Tree, WireError> {
        let step = "read the version's tree";
        let path = ["images", image.as_str(), "versions", &version.to_string(), "tree"];
        let request = || self.request(&self.streams, Method::GET, &path);
        let response = self.send(step, Repeat::Yes, request).await?;
        let text = self.body(step, response, MAX_TREE_TEXT_LEN).await?;
        tree_text::parse(&text)
            .map_err(|error| self.protocol(step, "its listing cannot be used").caused_by(error))
    }

    /// Has the server read the stored image of a version again. Takes seconds to minutes.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such version.
    pub async fn verify_image(
        &self,
        image: &ImageName,
        version: u64,
    ) -> Result<VerifyReply, WireError> {
        let step = "verify the stored image";
        let path = ["images", image.as_str(), "versions", &version.to_string(), "verify"];
        let request = || self.request(&self.calls, Method::POST, &path).timeout(BUILD_TIMEOUT);
        let response = self.send(step, Repeat::Yes, request).await?;
        self.json(step, response).await
    }

    /// Makes this machine an instance. The credential must be an enrolment token's.
    ///
    /// Not repeated: each success makes another instance.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is no such image, `Conflict` if none of its versions has that tree,
    /// `Refused` if the token is for another image or the name is no name.
    pub async fn enroll(&self, request: &EnrollRequest) -> Result<EnrollReply, WireError> {
        self.post("enrol this machine", &["enroll"], request, Repeat::No).await
    }

    /// Asks what comes after the version `have`; if nothing does, the answer waits up to `wait`
    /// (at most [`WAIT_MAX`]) for it.
    ///
    /// # Errors
    ///
    /// `NotFound` if the instance is unknown, `Conflict` if `have` is no version of its image.
    pub async fn next(
        &self,
        id: &InstanceId,
        have: Digest,
        wait: Duration,
    ) -> Result<Next, WireError> {
        let wait = wait.min(WAIT_MAX);
        let step = "ask for the next version";
        let path = ["instances", id.as_str(), "next"];
        let query = [("have", have.to_string()), ("wait", wait.as_secs().to_string())];
        let request = || {
            self.request(&self.calls, Method::GET, &path).query(&query).timeout(wait + CALL_TIMEOUT)
        };
        let response = self.send(step, Repeat::Yes, request).await?;
        self.json(step, response).await
    }

    /// Reports what an update did. Repeating it stores the same receipt again.
    ///
    /// # Errors
    ///
    /// `NotFound` if the instance is unknown, `Refused` if the receipt is longer than
    /// [`MAX_RECEIPT_LEN`](crate::limits::MAX_RECEIPT_LEN).
    pub async fn send_receipt(
        &self,
        id: &InstanceId,
        receipt: &ReceiptPost,
    ) -> Result<(), WireError> {
        let step = "send the receipt";
        let path = ["instances", id.as_str(), "receipts"];
        let request = || self.request(&self.calls, Method::POST, &path).json(receipt);
        self.send(step, Repeat::Yes, request).await.map(drop)
    }

    /// All instances.
    ///
    /// # Errors
    ///
    /// As the type says.
    pub async fn instances(&self) -> Result<Vec<InstanceEntry>, WireError> {
        let list: InstanceList = self.get("list the instances", &["instances"]).await?;
        Ok(list.instances)
    }

    /// The last receipt of an instance.
    ///
    /// # Errors
    ///
    /// `NotFound` if the instance is unknown or has sent none.
    pub async fn last_receipt(&self, id: &InstanceId) -> Result<ReceiptPost, WireError> {
        self.get("read the last receipt", &["instances", id.as_str(), "receipts", "last"]).await
    }

    async fn fetch_ca(&self) -> Result<String, WireError> {
        let step = "fetch the repository's CA certificate";
        let request = || self.request(&self.calls, Method::GET, &["ca"]);
        let response = self.send(step, Repeat::Yes, request).await?;
        let pem = self.body(step, response, MAX_CA_LEN).await?;
        String::from_utf8(pem)
            .map_err(|error| self.protocol(step, "it is not text").caused_by(error))
    }

    async fn get<R: DeserializeOwned>(&self, step: &str, path: &[&str]) -> Result<R, WireError> {
        let request = || self.request(&self.calls, Method::GET, path);
        let response = self.send(step, Repeat::Yes, request).await?;
        self.json(step, response).await
    }

    async fn post<R: DeserializeOwned>(
        &self,
        step: &str,
        path: &[&str],
        body: &impl Serialize,
        repeat: Repeat,
    ) -> Result<R, WireError> {
        let request = || self.request(&self.calls, Method::POST, path).json(body);
        let response = self.send(step, repeat, request).await?;
        self.json(step, response).await
    }

    fn request(&self, client: &reqwest::Client, method: Method, path: &[&str]) -> RequestBuilder {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        let request = client.request(method, url);
        match &self.credential {
            Some(secret) => request.header(AUTHORIZATION, format!("Bearer {}", secret.reveal())),
            None => request,
        }
    }

    /// Sends what `request` makes until it is answered, and turns refusals into errors.
    async fn send(
        &self,
        step: &str,
        repeat: Repeat,
        request: impl Fn() -> RequestBuilder,
    ) -> Result<Response, WireError> {
        let mut delays = RETRY_DELAYS.iter().filter(|_| repeat == Repeat::Yes);
        loop {
            let outcome = self.send_once(step, request()).await;
            let again = matches!(&outcome, Err(error) if error.kind() == ErrorKind::Unreachable);
            match delays.next().filter(|_| again) {
                Some(delay) => tokio::time::sleep(*delay).await,
                None => return outcome,
            }
        }
    }

    async fn send_once(&self, step: &str, request: RequestBuilder) -> Result<Response, WireError> {
        let response = request.send().await.map_err(|error| self.transport(step, error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(step, response).await)
    }

    /// The error in a failed reply, as far as it is readable.
    async fn refusal(&self, step: &str, response: Response) -> WireError {
        let status = response.status();
        let body = self.body(step, response, crate::limits::MAX_JSON_LEN).await.unwrap_or_default();
        if let Ok(reply) = serde_json::from_slice::<ErrorReply>(&body) {
            let message = format!("cannot {step} at {}: {}", self.url(), reply.message);
            return WireError::new(reply.kind, message).with_conflict(reply.conflict);
        }
        match status {
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let message = format!(
                    "cannot {step} at {}: the server answered {status}; try again later",
                    self.url()
                );
                WireError::new(ErrorKind::Unreachable, message)
            }
            _ => self.protocol(step, &format!("the server answered {status} without a reason")),
        }
    }

    async fn json<R: DeserializeOwned>(
        &self,
        step: &str,
        response: Response,
    ) -> Result<R, WireError> {
        let body = self.body(step, response, MAX_REPLY_LEN).await?;
        serde_json::from_slice(&body).map_err(|error| {
            self.protocol(step, "its answer is not the expected JSON").caused_by(error)
        })
    }

    async fn body(
        &self,
        step: &str,
        mut response: Response,
        len_max: usize,
    ) -> Result<Vec<u8>, WireError> {
        let mut body = Vec::new();
        while let Some(piece) =
            response.chunk().await.map_err(|error| self.transport(step, error))?
        {
            if body.len() + piece.len() > len_max {
                return Err(
                    self.protocol(step, &format!("its answer is longer than {len_max} bytes"))
                );
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    fn protocol(&self, step: &str, why: &str) -> WireError {
        let message = format!(
            "cannot {step} at {}: {why}; check that a Vireo repository of the same version serves there",
            self.url()
        );
        WireError::new(ErrorKind::Protocol, message)
    }

    fn transport(&self, step: &str, error: reqwest::Error) -> WireError {
        let url = self.url();
        // The address is in the message already.
        let error = error.without_url();
        if names(&error, "certificate") {
            let message = format!(
                "cannot {step} at {url}: its certificate is not good for this address; check the \
                 address, and `--listen-name` of `vireo-repo`"
            );
            return WireError::new(ErrorKind::Unauthorised, message).caused_by(error);
        }
        let why =
            if error.is_timeout() { "no answer in time" } else { "no connection, or it broke" };
        let message = format!(
            "cannot {step} at {url}: {why}; check that it runs and is reachable, then try again"
        );
        WireError::new(ErrorKind::Unreachable, message).caused_by(error)
    }
}

/// Whether a cause of `error` speaks of `word`; TLS errors reach us only as text.
fn names(error: &dyn Error, word: &str) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.to_string().contains(word) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn parse_url(url: &str) -> Result<Url, WireError> {
    let refuse = |why: &str| {
        let message =
            format!("cannot use {url:?} as a repository's address: {why}; write https://HOST:PORT");
        WireError::new(ErrorKind::Refused, message)
    };
    let parsed = Url::parse(url).map_err(|error| refuse("it is no URL").caused_by(error))?;
    if parsed.scheme() != "https" || parsed.cannot_be_a_base() {
        return Err(refuse("it does not start with https://"));
    }
    if parsed.query().is_some() || parsed.fragment().is_some() || !parsed.username().is_empty() {
        return Err(refuse("it has more than a host, a port and a path"));
    }
    Ok(parsed)
}

fn common(timeout: Duration) -> reqwest::ClientBuilder {
    harden(reqwest::Client::builder().timeout(timeout))
}

/// What every connection has: no proxy from the environment, no redirect that would carry the
/// credential elsewhere, no plain HTTP, and signs of life on connections that wait long.
fn harden(builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
    builder
        .no_proxy()
        .https_only(true)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_keepalive(Duration::from_secs(20))
        .user_agent(concat!("vireo/", env!("CARGO_PKG_VERSION")))
}

fn build(builder: reqwest::ClientBuilder, base: &Url) -> Result<reqwest::Client, WireError> {
    builder.build().map_err(|error| {
        let message = format!("cannot set up TLS for {base}");
        WireError::new(ErrorKind::Local, message).caused_by(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_addresses_are_taken() {
        for url in ["http://h:1", "h:1", "/dir", "https://u:p@h", "https://h/?x", "mailto:x"] {
            let error = parse_url(url).expect_err(url);
            assert_eq!(error.kind(), ErrorKind::Refused, "{url}");
        }
        assert!(parse_url("https://h:8443/below").is_ok());
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_unreachable_and_named() {
        let token: Token =
            format!("vireo-token-v1:admin:{0}:{0}", "00".repeat(32)).parse().expect("a token");
        // Port 1 of this machine: nobody listens, and the kernel says so at once.
        let error =
            Client::connect("https://127.0.0.1:1", &token).await.expect_err("nobody listens");
        assert_eq!(error.kind(), ErrorKind::Unreachable);
        assert!(error.to_string().contains("https://127.0.0.1:1"), "{error}");
    }
}
