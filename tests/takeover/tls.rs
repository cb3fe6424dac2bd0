//! TLS above and below `SseIo`. With TLS above it, the hub sees only encrypted bytes. With TLS
//! below it, the hub has no TCP socket. So no stream is taken over.

use std::net::SocketAddr;
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
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tower_sse::{Event, Hub};

use crate::kit::access::by_query;
use crate::kit::certificate::Certificate;
use crate::kit::{Events, reply, soon};

/// A verifier that accepts every certificate.
#[derive(Debug)]
struct AcceptsAll;

impl ServerCertVerifier for AcceptsAll {
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

/// The position of `SseIo` relative to TLS.
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
                        let service = TowerToHyperService::new(hub.endpoint(by_query));
                        let builder = auto::Builder::new(TokioExecutor::new());
                        match place {
                            Place::Below => {
                                let io = TokioIo::new(acceptor.accept(hub.io(tcp).take_over()).await.unwrap());
                                drop(builder.serve_connection(io, service).await);
                            }
                            Place::Above => {
                                let io = TokioIo::new(hub.io(acceptor.accept(tcp).await.unwrap()).take_over());
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
        let config = config.with_custom_certificate_verifier(Arc::new(AcceptsAll)).with_no_client_auth();
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
async fn a_stream_over_tls_continues_by_its_body() {
    let Some(certificate) = Certificate::make() else { return };
    for place in [Place::Below, Place::Above] {
        let hub = Hub::builder().heartbeat(Duration::from_millis(100)).visible_heartbeat().build().unwrap();
        let server = Secure::start(&hub, certificate.acceptor(&[]), place).await;
        let mut events = server.events().await;
        assert_eq!(events.next().await.event, "hub.hello", "{place:?}");
        for n in 0..20 {
            hub.topic("t").publish(Event::unnamed(n.to_string())).await.unwrap();
            assert_eq!(events.next_own().await.data, n.to_string(), "{place:?}");
        }
        while events.next().await.event != "hub.live" {}
        assert_eq!((server.serving.load(Ordering::SeqCst), hub.stats().connections), (1, 1), "{place:?}");
        soon(hub.drain(Duration::ZERO)).await;
        assert_eq!(events.rest().await.pop().unwrap().event, "hub.bye", "{place:?}");
    }
}
