//! The repository's certificate authority: one key, made once, that issues the server's
//! certificate at every start.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use vireo_model::Digest;
use vireo_store::Store;

use crate::error::{Detail, RepoError, io_error, tls_error};

/// Certificates are good from here on, so that a machine whose clock is not set yet can connect.
const FIRST_YEAR: i32 = 2000;

/// The authority is pinned by its digest; its expiry would only be a way to lose all machines.
const LAST_YEAR: i32 = 2199;

/// A server's certificate is made at every start; no server runs longer.
const SERVER_YEARS: i32 = 5;

/// The authority of one repository.
#[derive(Debug)]
pub(crate) struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    key: KeyPair,
}

impl Authority {
    /// Makes the authority of a repository that has none.
    ///
    /// A crash leaves a repository without a certificate, which is to be made again.
    pub(crate) fn create(store: &Store) -> Result<Self, RepoError> {
        let step = "make the certificate authority";
        let key = KeyPair::generate().map_err(tls_error(step))?;
        let certificate = params(&key).self_signed(&key).map_err(tls_error(step))?;
        let paths = Paths::of(store);
        let write = |path: &PathBuf, text: String| {
            store.writes().replace(path, text.as_bytes()).map_err(io_error("write", path))
        };
        write(&paths.key, key.serialize_pem())?;
        restrict(&paths.key)?;
        write(&paths.certificate, certificate.pem())?;
        Ok(Self { pem: certificate.pem(), der: certificate.der().clone(), key })
    }

    pub(crate) fn load(store: &Store) -> Result<Self, RepoError> {
        let step = "load the certificate authority";
        let paths = Paths::of(store);
        let read = |path: &PathBuf| fs::read_to_string(path).map_err(io_error("read", path));
        let pem = read(&paths.certificate)?;
        let key = KeyPair::from_pem(&read(&paths.key)?).map_err(tls_error(step))?;
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(tls_error(step))?;
        Ok(Self { pem, der, key })
    }

    /// The certificate, PEM.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// What tokens pin.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.der)
    }

    /// TLS of a server that can be reached by `names`: DNS names and IP addresses.
    pub(crate) fn server_config(
        &self,
        names: &[String],
        now: Timestamp,
    ) -> Result<ServerConfig, RepoError> {
        let step = "make the server's certificate";
        let key = KeyPair::generate().map_err(tls_error(step))?;
        let certificate = self.issue(names, &key, now)?;
        let chain = vec![certificate.der().clone()];
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(tls_error(step))?
            .with_no_client_auth()
            .with_single_cert(chain, key.into())
            .map_err(tls_error(step))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn issue(
        &self,
        names: &[String],
        key: &KeyPair,
        now: Timestamp,
    ) -> Result<Certificate, RepoError> {
        let mut params = CertificateParams::new(names).map_err(|source| {
            let step = "make the server's certificate: a listen name is neither a DNS name nor an IP address";
            Detail::Tls { step, source: source.into() }
        })?;
        let year = i32::from(now.to_zoned(TimeZone::UTC).year());
        params.not_before = date_time_ymd(FIRST_YEAR, 1, 1);
        params.not_after =
            date_time_ymd((year + SERVER_YEARS).clamp(FIRST_YEAR + 1, LAST_YEAR), 12, 31);
        params.distinguished_name.push(DnType::CommonName, "Vireo repository");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let authority = self::params(&self.key);
        let issuer = Issuer::from_params(&authority, &self.key);
        let step = "make the server's certificate";
        params.signed_by(key, &issuer).map_err(tls_error(step))
    }
}

/// The same for the same key, so that a certificate made today is the one that was pinned.
fn params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let name = format!("Vireo repository authority {}", Digest::of(key.public_key_raw()).short());
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(FIRST_YEAR, 1, 1);
    params.not_after = date_time_ymd(LAST_YEAR, 12, 31);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

struct Paths {
    certificate: PathBuf,
    key: PathBuf,
}

impl Paths {
    fn of(store: &Store) -> Self {
        let directory = store.root().join("ca");
        Self { certificate: directory.join("ca.pem"), key: directory.join("ca.key") }
    }
}

/// For secrets: readable by the owner alone. The repository's directory, 0700, keeps others out
/// already; this keeps the mode when the file is copied.
pub(crate) fn restrict(path: &PathBuf) -> Result<(), RepoError> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(io_error("restrict the mode of", path))
}
