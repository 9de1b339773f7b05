//! The repository over HTTPS: `vireo_wire::api`, one handler per line of its table.
//!
//! Handlers parse, ask [`Repository`] on a blocking thread, and answer. What a client started is
//! finished even if it goes away; it asks again and finds it done.

mod auth;
mod content;
mod drain;
mod fleet;
mod images;
mod reply;

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post, put};
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use tokio::sync::watch;
use vireo_wire::limits::{MAX_FRAME_LEN, MAX_HEAD_LEN, MAX_JSON_LEN, MAX_RECEIPT_LEN};

use crate::error::{Detail, RepoError};
use crate::event::Event;
use crate::repository::Repository;
use reply::Failure;

/// How long a new connection may take to send its first request's head.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long requests that run may go on after the server was told to stop. A build that is cut is
/// built again by the next push.
const STOP_WAIT: Duration = Duration::from_secs(10);

/// What all handlers share.
struct App {
    repository: Arc<Repository>,
    /// Changes whenever a version was published by this server.
    published: watch::Sender<u64>,
    /// Becomes true when the server stops, so that long polls end.
    stopping: watch::Sender<bool>,
}

impl App {
    fn new(repository: Arc<Repository>) -> Self {
        Self { repository, published: watch::Sender::new(0), stopping: watch::Sender::new(false) }
    }

    /// Has long polls look again.
    fn has_published(&self) {
        self.published.send_modify(|count| *count += 1);
    }
}

/// A server that listens, but does not answer yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    addr: SocketAddr,
    tls: RustlsConfig,
    repository: Arc<Repository>,
}

impl Server {
    /// Listens on `addr` with a certificate for the names that the repository was made with,
    /// `more_names`, and the address itself.
    ///
    /// # Errors
    ///
    /// `Io` if the address cannot be had or the certificate cannot be made.
    pub fn bind(
        repository: Arc<Repository>,
        addr: SocketAddr,
        more_names: &[String],
    ) -> Result<Self, RepoError> {
        let listen = |source: io::Error| {
            let path = addr.to_string().into();
            Detail::Io { step: "listen on", path, source }
        };
        let listener = TcpListener::bind(addr).map_err(listen)?;
        let addr = listener.local_addr().map_err(listen)?;
        let mut names = repository.listen_names()?;
        names.extend_from_slice(more_names);
        if !addr.ip().is_unspecified() {
            names.push(addr.ip().to_string());
        }
        names.sort();
        names.dedup();
        let config = repository.authority.server_config(&names, repository.now())?;
        let tls = RustlsConfig::from_config(Arc::new(config));
        Ok(Self { listener, addr, tls, repository })
    }

    /// The address that it listens on.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What it serves.
    #[must_use]
    pub fn repository(&self) -> Arc<Repository> {
        Arc::clone(&self.repository)
    }

    /// Answers until `stop` is ready; then takes no more connections, ends long polls, and gives
    /// other requests ten seconds.
    ///
    /// # Errors
    ///
    /// `Io` if the listener fails.
    pub async fn run(self, stop: impl Future<Output = ()> + Send) -> Result<(), RepoError> {
        let failed =
            |source| Detail::Io { step: "serve", path: self.addr.to_string().into(), source };
        let app = Arc::new(App::new(self.repository));
        let handle = Handle::new();
        let server = axum_server::from_tcp_rustls(self.listener, self.tls)
            .map_err(failed)?
            .handle(handle.clone())
            .http1_only()
            .first_request_timeout(FIRST_REQUEST_TIMEOUT)
            .serve(router(Arc::clone(&app)).into_make_service());
        let stopping = async {
            stop.await;
            app.stopping.send_replace(true);
            handle.graceful_shutdown(Some(STOP_WAIT));
            std::future::pending().await
        };
        tokio::select! {
            outcome = server => outcome.map_err(|source| failed(source).into()),
            () = stopping => Ok(()),
        }
    }
}

fn router(app: Arc<App>) -> Router {
    let v1 = Router::new()
        .route("/ca", get(images::ca))
        .route("/images", get(images::list))
        .route("/images/{name}", get(images::log))
        .route("/images/{name}/versions/{n}/tree", get(images::tree))
        .route("/images/{name}/versions/{n}/disk", get(content::disk))
        .route("/images/{name}/versions/{n}/verify", post(images::verify))
        .route("/frames/missing", post(images::missing_frames))
        .route("/enroll", post(fleet::enroll))
        .route("/instances", get(fleet::list))
        .route("/instances/{id}/next", get(fleet::next))
        .route("/instances/{id}/receipts/last", get(fleet::last_receipt))
        .route("/bundles/{digest}", get(content::bundle))
        .layer(DefaultBodyLimit::max(MAX_JSON_LEN));
    let own_limit = Router::new()
        .route(
            "/instances/{id}/receipts",
            post(fleet::receipt).layer(DefaultBodyLimit::max(MAX_RECEIPT_LEN)),
        )
        .route("/images/{name}", post(content::create).layer(DefaultBodyLimit::disable()))
        .route(
            "/images/{name}/versions",
            post(images::push).layer(DefaultBodyLimit::max(MAX_HEAD_LEN)),
        )
        .route(
            "/incoming/{bundle}/frames/{digest}",
            put(images::put_frame).layer(DefaultBodyLimit::max(MAX_FRAME_LEN)),
        );
    Router::new()
        .nest("/v1", v1.merge(own_limit))
        .fallback(unknown)
        .layer(axum::middleware::map_request(drain::unread))
        .with_state(app)
}

async fn unknown() -> Failure {
    Failure::protocol("there is nothing at this address; are both sides of the same version?")
}

/// Runs `work` for `request`, as the log is to call it, on a blocking thread. The server's own
/// failures go to its log too.
async fn blocking<T: Send + 'static>(
    app: &Arc<App>,
    request: &str,
    work: impl FnOnce(&Repository) -> Result<T, RepoError> + Send + 'static,
) -> Result<T, Failure> {
    let repository = Arc::clone(&app.repository);
    let outcome = tokio::task::spawn_blocking(move || work(&repository)).await;
    outcome
        .map_err(|error| RepoError::internal(error.to_string()))
        .and_then(|inner| inner)
        .map_err(Failure::from)
        .inspect_err(|failure| note(app, request, failure))
}

/// Writes `failure` of `request` to the log, if it is the server's own.
fn note(app: &App, request: &str, failure: &Failure) {
    if failure.is_ours() {
        let (request, error) = (request.to_owned(), failure.message().to_owned());
        app.repository.tell(&Event::Failed { request, error });
    }
}

#[cfg(test)]
mod tests;
