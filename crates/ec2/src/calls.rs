//! Every call goes through here: tried again when that helps, named when it fails, only told of in a dry run.

use std::collections::hash_map::RandomState;
use std::error::Error;
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use serde::Serialize;

use crate::error::{Detail, Ec2Error, ErrorKind, Failed};

/// Tries of one call while the service answers that it is overloaded: two minutes at most.
const MAX_TRIES: u32 = 14;

/// Tries of one call that does not reach the service.
const MAX_CONNECTS: u32 = 4;

/// Longest pause before the second try; it doubles with every further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Longest pause.
const MAX_PAUSE: Duration = Duration::from_secs(15);

/// First pause between two looks whether EC2 is done.
const FIRST_POLL: Duration = Duration::from_millis(200);

/// A call that changes something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Call {
    /// Its name in the service's interface; `WriteDevice` is this host's writing to a volume.
    pub operation: &'static str,
    /// What it is about.
    pub what: String,
    /// Whether it was only planned: this is a dry run.
    pub planned: bool,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = if self.planned { "would call " } else { "" };
        write!(f, "{mark}{}: {}", self.operation, self.what)
    }
}

/// Is told of every call that changes something, before it is made.
pub type Observer = Arc<dyn Fn(&Call) + Send + Sync>;

/// The clients, and what is done about their errors.
#[derive(Clone)]
pub(crate) struct Calls {
    pub(crate) ec2: aws_sdk_ec2::Client,
    pub(crate) ebs: aws_sdk_ebs::Client,
    pub(crate) dry: bool,
    pub(crate) observer: Observer,
    /// Longest wait for EC2 to be done with something.
    pub(crate) patience: Duration,
    /// Where the calls go, for messages.
    pub(crate) place: String,
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls")
            .field("place", &self.place)
            .field("dry", &self.dry)
            .finish_non_exhaustive()
    }
}

impl Calls {
    /// A call that changes nothing: made in dry runs too.
    pub(crate) async fn ask<T, E, F>(
        &self,
        operation: &'static str,
        what: &str,
        call: impl Fn() -> F,
    ) -> Result<T, Ec2Error>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let (mut tried, mut after_silence) = (1, false);
        loop {
            let error = match call().await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if tried >= most_tries(&error) {
                return Err(self.failure((operation, what), error, after_silence));
            }
            after_silence |= error.as_service_error().is_none();
            tokio::time::sleep(pause(tried)).await;
            tried += 1;
        }
    }

    /// A call that changes something; a dry run makes do with `instead`.
    pub(crate) async fn change<T, E, F>(
        &self,
        operation: &'static str,
        what: String,
        instead: impl FnOnce() -> T,
        call: impl Fn() -> F,
    ) -> Result<T, Ec2Error>
    where
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let call_made = Call { operation, what, planned: self.dry };
        (self.observer)(&call_made);
        if self.dry {
            return Ok(instead());
        }
        self.ask(operation, &call_made.what, call).await
    }

    /// Tells of a call whose repetitions are made elsewhere.
    pub(crate) fn tell(&self, operation: &'static str, what: String) {
        (self.observer)(&Call { operation, what, planned: self.dry });
    }

    /// Looks until there is an answer.
    pub(crate) async fn until<T, F>(&self, what: &str, look: impl Fn() -> F) -> Result<T, Ec2Error>
    where
        F: Future<Output = Result<Option<T>, Ec2Error>>,
    {
        let deadline = tokio::time::Instant::now() + self.patience;
        let mut poll = FIRST_POLL;
        loop {
            if let Some(found) = look().await? {
                return Ok(found);
            }
            if tokio::time::Instant::now() >= deadline {
                let what = format!(
                    "{what} was not seen within {} minutes; the next try continues from here",
                    self.patience.as_secs() / 60
                );
                return Err(Ec2Error::plain(ErrorKind::Unavailable, what));
            }
            tokio::time::sleep(poll).await;
            poll = (poll * 2).min(MAX_PAUSE);
        }
    }

    fn failure<E>(
        &self,
        (operation, what): (&'static str, &str),
        error: SdkError<E, HttpResponse>,
        after_silence: bool,
    ) -> Ec2Error
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        let code = error.as_service_error().and_then(|error| error.code()).map(str::to_owned);
        let answer = error.as_service_error().and_then(|error| error.message()).map(str::to_owned);
        let message = answer.unwrap_or_else(|| innermost(&error));
        let kind = kind(&error, code.as_deref());
        let remedy = self.remedy(operation, kind, &error);
        let what = what.to_owned();
        let failed = Failed { kind, operation, what, code, message, remedy, after_silence };
        Detail::Call(failed, Box::new(error)).into()
    }

    fn remedy<E>(
        &self,
        operation: &str,
        kind: ErrorKind,
        error: &SdkError<E, HttpResponse>,
    ) -> String {
        let rights = "check the credentials, and their rights with the policy in docs/ec2.md";
        match kind {
            ErrorKind::Denied if operation == "StartSnapshot" => format!(
                "{rights}; an account without the EBS direct interface publishes from a volume \
                 (`vireo-repo ec2 publish-volume`)"
            ),
            ErrorKind::Denied => rights.to_owned(),
            ErrorKind::Unavailable if error.as_service_error().is_none() => format!(
                "check that this host reaches {}, and that region and endpoint are right",
                self.place
            ),
            ErrorKind::Unavailable => "try again later".to_owned(),
            _ => String::new(),
        }
    }
}

/// How often a call that failed like this is made in all.
fn most_tries<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> u32 {
    match error {
        SdkError::ServiceError(service) if is_transient(service.raw(), service.err().code()) => {
            MAX_TRIES
        }
        SdkError::DispatchFailure(failure) if failure.is_user() => 1,
        SdkError::DispatchFailure(_) => MAX_CONNECTS,
        SdkError::ResponseError(_) | SdkError::TimeoutError(_) => MAX_CONNECTS,
        _ => 1,
    }
}

fn is_transient(response: &HttpResponse, code: Option<&str>) -> bool {
    let status = response.status().as_u16();
    // Answered with 503, but asking again gives the same answer.
    if code == Some("ConflictException") {
        return false;
    }
    status >= 500 || status == 429 || code.is_some_and(is_throttling)
}

/// The codes by which the services say that they are overloaded: those of the SDK's own classifier.
fn is_throttling(code: &str) -> bool {
    const CODES: &[&str] = &[
        "BandwidthLimitExceeded",
        "EC2ThrottledException",
        "InternalServerException",
        "LimitExceededException",
        "PriorRequestNotComplete",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "SlowDown",
        "ThrottledException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
        "TransactionInProgressException",
    ];
    CODES.contains(&code)
}

fn kind<E: ProvideErrorMetadata>(
    error: &SdkError<E, HttpResponse>,
    code: Option<&str>,
) -> ErrorKind {
    let SdkError::ServiceError(service) = error else { return ErrorKind::Unavailable };
    if is_transient(service.raw(), code) {
        return ErrorKind::Unavailable;
    }
    const DENIED: &[&str] = &[
        "AuthFailure",
        "ExpiredToken",
        "ExpiredTokenException",
        "IncompleteSignature",
        "InvalidClientTokenId",
        "MissingAuthenticationToken",
        "OptInRequired",
        "RequestExpired",
        "SignatureDoesNotMatch",
        "UnauthorizedOperation",
        "UnrecognizedClientException",
    ];
    match code {
        Some(code) if DENIED.contains(&code) || code.starts_with("AccessDenied") => {
            ErrorKind::Denied
        }
        Some(code) if code.contains("NotFound") || code.starts_with("InvalidAMIID") => {
            ErrorKind::NotFound
        }
        _ => ErrorKind::Refused,
    }
}

/// The last cause: it says the most where no service answered.
fn innermost(error: &(dyn Error + 'static)) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// A pause of random length, so that calls which failed together do not come back together ("full
/// jitter": Brooker, *Exponential Backoff And Jitter*, AWS Architecture Blog, 2015).
fn pause(tried: u32) -> Duration {
    let most = FIRST_PAUSE.saturating_mul(1 << tried.min(16)).min(MAX_PAUSE);
    let random = RandomState::new().build_hasher().finish() >> 32;
    most.mul_f64(random as f64 / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_up_to_their_limit_and_differ() {
        assert!((0..100).all(|_| pause(1) <= FIRST_PAUSE * 2));
        assert!((0..100).all(|_| pause(30) <= MAX_PAUSE));
        let (a, b) = (pause(20), pause(20));
        assert_ne!((a, a), (b, pause(20)), "three equal ones in a row");
    }

    #[test]
    fn a_planned_call_is_marked() {
        let call = Call { operation: "RegisterImage", what: "web@2".to_owned(), planned: true };
        assert_eq!(call.to_string(), "would call RegisterImage: web@2");
    }
}
