//! Certificates for the servers of tests: a self-signed one, and those of a private authority.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::skip;

/// A folder with a key and a certificate for 127.0.0.1. Dropping this value deletes the folder.
pub struct Certificate(PathBuf);

impl Certificate {
    /// Creates a certificate. Without openssl, reports the test as skipped and returns `None`.
    pub fn make() -> Option<Self> {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        if !skip::has("openssl", "version") {
            return None;
        }
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("tower-sse-certificate-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let this = Self(folder);
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-keyout", &this.key(), "-out", &this.certificate()])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Some(this)
    }

    /// Returns the path of the key.
    pub fn key(&self) -> String {
        self.file("key.pem")
    }

    /// Returns the path of the certificate.
    pub fn certificate(&self) -> String {
        self.file("certificate.pem")
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }

    /// Returns an acceptor that offers these ALPN protocols. An empty list disables ALPN.
    pub fn acceptor(&self, protocols: &[&str]) -> TlsAcceptor {
        let key = PrivateKeyDer::from_pem_file(self.key()).unwrap();
        let certificate = CertificateDer::from_pem_file(self.certificate()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let mut config = config.with_single_cert(vec![certificate], key).unwrap();
        config.alpn_protocols = protocols.iter().map(|&protocol| protocol.into()).collect();
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").current_dir(folder).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Creates a certificate authority, `ca.pem`, and three certificates of it: `server` for 127.0.0.1,
/// `elsewhere` for another host, and `client`, whose name is `hub`. Each has a key.
pub fn make_authority(folder: &Path) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(folder, &format!("req -x509 {key} -subj /CN=authority -keyout ca.key -out ca.pem"));
    for (file, name, host) in [
        ("server", "server", "IP:127.0.0.1"),
        ("elsewhere", "server", "DNS:db.internal"),
        ("client", "hub", "IP:127.0.0.1"),
    ] {
        std::fs::write(folder.join("names"), format!("subjectAltName={host}")).unwrap();
        openssl(folder, &format!("req {key} -subj /CN={name} -keyout {file}.key -out {file}.csr"));
        let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names";
        openssl(folder, &format!("x509 -req -in {file}.csr {sign} -out {file}.pem"));
    }
}
