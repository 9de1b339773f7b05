//! Reading on after a refusal: a connection that is closed on a sending client is reset, and the
//! reply that says why is lost with it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::Request;
use futures_util::{Stream, StreamExt as _};

/// How long a body that nobody wants is read; a client that can read has seen the reply by then.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Puts the request's body into a wrapper that reads what the handler has left.
pub(super) async fn unread(request: Request) -> Request {
    request.map(|body| Body::from_stream(DrainOnDrop { rest: Some(body.into_data_stream()) }))
}

struct DrainOnDrop {
    rest: Option<BodyDataStream>,
}

impl Stream for DrainOnDrop {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        let polled = rest.poll_next_unpin(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.rest = None;
        }
        polled
    }
}

impl Drop for DrainOnDrop {
    fn drop(&mut self) {
        let Some(mut rest) = self.rest.take() else { return };
        // Without a runtime the server is ending, and so is the connection.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(tokio::time::timeout(DRAIN_TIMEOUT, async move {
            while let Some(Ok(_)) = rest.next().await {}
        }));
    }
}
