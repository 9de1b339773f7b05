//! The SDK's clients: one TLS stack, our own name resolution, the SDK's own credentials.

use std::time::Duration;

use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_ec2::config::ProvideCredentials as _;
use aws_smithy_http_client::{Builder, tls};
use aws_smithy_runtime_api::client::dns::{DnsFuture, ResolveDns, ResolveDnsError};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use aws_smithy_types::retry::RetryConfig;
use hickory_resolver::TokioResolver;

use crate::error::{Ec2Error, ErrorKind};
use crate::settings::Settings;

/// Time for a connection to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for one try of one call, the 512 KiB of a block included.
const TRY_TIMEOUT: Duration = Duration::from_secs(120);

/// Resolves host names without the C library: in a static program its resolver cannot load what the
/// system's configuration names.
#[derive(Clone, Debug)]
struct Resolver(Option<TokioResolver>);

impl ResolveDns for Resolver {
    fn resolve_dns<'a>(&'a self, name: &'a str) -> DnsFuture<'a> {
        DnsFuture::new(async move {
            let Some(resolver) = &self.0 else {
                return Err(ResolveDnsError::new("/etc/resolv.conf cannot be read"));
            };
            let found = resolver.lookup_ip(name).await.map_err(ResolveDnsError::new)?;
            Ok(found.iter().collect())
        })
    }
}

fn http_client() -> SharedHttpClient {
    let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
    Builder::new()
        .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc))
        .build_with_resolver(Resolver(resolver.ok()))
}

/// Reads the SDK's configuration: environment, files, the machine's own role.
///
/// # Errors
///
/// `Settings` without a region, `Denied` without credentials.
pub(crate) async fn load(settings: &Settings) -> Result<SdkConfig, Ec2Error> {
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http_client());
    if let Some(profile) = &settings.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(region) = &settings.region {
        loader = loader.region(Region::new(region.clone()));
    }
    let config = loader.load().await;
    if config.region().is_none() {
        return Err(Ec2Error::settings(
            "no region is set; add `region` to the settings or set AWS_REGION",
        ));
    }
    check_credentials(&config).await?;
    Ok(config)
}

async fn check_credentials(config: &SdkConfig) -> Result<(), Ec2Error> {
    let remedy =
        "set AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give this host a role";
    let Some(provider) = config.credentials_provider() else {
        return Err(Ec2Error::plain(
            ErrorKind::Denied,
            format!("there are no AWS credentials; {remedy}"),
        ));
    };
    match provider.provide_credentials().await {
        Ok(_) => Ok(()),
        Err(error) => {
            let mut why = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(error) = cause {
                why = format!("{why}: {error}");
                cause = error.source();
            }
            let what = format!("there are no AWS credentials ({why}); {remedy}");
            Err(Ec2Error::plain(ErrorKind::Denied, what))
        }
    }
}

/// The two clients. Their own tries are turned off: `calls` decides what is tried again.
pub(crate) fn clients(
    config: &SdkConfig,
    settings: &Settings,
) -> (aws_sdk_ec2::Client, aws_sdk_ebs::Client) {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .operation_attempt_timeout(TRY_TIMEOUT)
        .build();
    let mut builder = config.to_builder();
    if config.http_client().is_none() {
        builder.set_http_client(Some(http_client()));
    }
    let config = builder.retry_config(RetryConfig::disabled()).timeout_config(timeouts).build();
    let mut ec2 = aws_sdk_ec2::config::Builder::from(&config);
    let mut ebs = aws_sdk_ebs::config::Builder::from(&config);
    ec2.set_endpoint_url(
        settings.endpoint.clone().or_else(|| config.endpoint_url().map(Into::into)),
    );
    let other = settings.ebs_endpoint.clone().or_else(|| settings.endpoint.clone());
    ebs.set_endpoint_url(other.or_else(|| config.endpoint_url().map(Into::into)));
    (aws_sdk_ec2::Client::from_conf(ec2.build()), aws_sdk_ebs::Client::from_conf(ebs.build()))
}
