//! TLS above the hub's part and below it: what goes out is nothing that it knows, or the socket is none that it has.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, ServerConfig, SignatureScheme};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower_sse::{Event, Hub};

use crate::kit::{Events, reply, skip, soon};
use crate::site::access;

/// Whoever the server is.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A key and a certificate that nobody vouches for, and that are gone afterwards.
struct Certificate(PathBuf);

impl Certificate {
    /// Makes a certificate. Without openssl, reports the test as skipped and returns `None`.
    fn make(name: &str) -> Option<Self> {
        if Command::new("openssl").arg("version").output().is_err() {
            skip::not_installed("openssl");
            return None;
        }
        let folder = std::env::temp_dir().join(format!("tower-sse-hand-over-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=127.0.0.1", "-keyout"])
            .arg(folder.join("key.pem"))
            .arg("-out")
            .arg(folder.join("certificate.pem"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Some(Self(folder))
    }

    fn acceptor(&self) -> TlsAcceptor {
        let key = PrivateKeyDer::from_pem_file(self.0.join("key.pem")).unwrap();
        let certificate = CertificateDer::from_pem_file(self.0.join("certificate.pem")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        TlsAcceptor::from(Arc::new(config.with_single_cert(vec![certificate], key).unwrap()))
    }
}

impl Drop for Certificate {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// Where the hub's part is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Below,
    Above,
}

struct Secure {
    addr: SocketAddr,
    serving: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Secure {
    async fn start(hub: &Hub, acceptor: TlsAcceptor, place: Place) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (hub, serving) = (hub.clone(), Arc::<AtomicUsize>::default());
        let task = tokio::spawn({
            let serving = Arc::clone(&serving);
            async move {
                loop {
                    let (tcp, _) = listener.accept().await.unwrap();
                    let (hub, acceptor, serving) = (hub.clone(), acceptor.clone(), Arc::clone(&serving));
                    serving.fetch_add(1, Ordering::SeqCst);
                    tokio::spawn(async move {
                        let service = TowerToHyperService::new(hub.endpoint(access));
                        let builder = auto::Builder::new(TokioExecutor::new());
                        match place {
                            Place::Below => {
                                let io = TokioIo::new(acceptor.accept(hub.io(tcp).hand_over()).await.unwrap());
                                drop(builder.serve_connection(io, service).await);
                            }
                            Place::Above => {
                                let io = TokioIo::new(hub.io(acceptor.accept(tcp).await.unwrap()).hand_over());
                                drop(builder.serve_connection(io, service).await);
                            }
                        }
                        serving.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
        });
        Self { addr, serving, task }
    }

    async fn events(&self) -> Events {
        let config = ClientConfig::builder_with_provider(Arc::new(default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().dangerous();
        let config = config.with_custom_certificate_verifier(Arc::new(Anybody)).with_no_client_auth();
        let tcp = TcpStream::connect(self.addr).await.unwrap();
        let name = ServerName::from(self.addr.ip());
        let tls = soon(TlsConnector::from(Arc::new(config)).connect(name, tcp)).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/events?topic=t").header("host", "test").body(Full::<bytes::Bytes>::default());
        reply(soon(sender.send_request(request.unwrap())).await.unwrap()).events()
    }
}

impl Drop for Secure {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn the_server_goes_on_with_it() {
    let Some(certificate) = Certificate::make("tls") else { return };
    for place in [Place::Below, Place::Above] {
        let hub = Hub::builder().heartbeat(Duration::from_millis(100)).visible_heartbeat().build().unwrap();
        let server = Secure::start(&hub, certificate.acceptor(), place).await;
        let mut events = server.events().await;
        assert_eq!(events.next().await.event, "hub.hello", "{place:?}");
        for n in 0..20 {
            hub.topic("t").publish(Event::message(n.to_string())).await.unwrap();
            assert_eq!(events.next_own().await.data, n.to_string(), "{place:?}");
        }
        while events.next().await.event != "hub.live" {}
        assert_eq!((server.serving.load(Ordering::SeqCst), hub.stats().connections), (1, 1), "{place:?}");
        soon(hub.drain(Duration::ZERO)).await;
        assert_eq!(events.rest().await.pop().unwrap().event, "hub.bye", "{place:?}");
    }
}
