//! The crate, under axum and under hyper.

use std::convert::Infallible;
use std::net::TcpListener;
use std::time::Instant;

use ::axum::Router;
use ::axum::extract::{RawQuery, State};
use ::axum::routing::post;
use ::hyper::body::Incoming;
use ::hyper::server::conn::http1;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tower::{Layer, service_fn};
use tower_sse::{Event, Hub, Public, Refusal, Retention, StreamRequest, Subscription, Target, TopicFilter};

use super::{Address, EVENT, Options, Order, published};
use crate::parse::KEY;

fn hub(options: Options) -> Hub {
    let retention = if options.replay { Retention::replay() } else { Retention::live() };
    Hub::builder()
        .retention_for(TopicFilter::exact("latest"), Retention::latest_per_key())
        .topic_retention(retention)
        .user_retention(Retention::live())
        .max_topics(1_000)
        .build()
        .unwrap()
}

/// An access hook as in an application: it determines the user and the topics.
async fn access(request: StreamRequest) -> Result<Subscription, Refusal> {
    let subscription = Public::topics(TopicFilter::any()).subscription(&request)?;
    let mut users = request.query_values("user");
    Ok(match users.next() {
        Some(user) => subscription.with_user(user.as_ref()),
        None => subscription,
    })
}

async fn publish(hub: &Hub, query: &str, body: Bytes) -> Response<Bytes> {
    let order = Order::parse(query);
    let target = |address| match address {
        Address::Topic(topic) => hub.topic(topic),
        Address::User(user) => hub.user(user),
    };
    let event = |data: Bytes| {
        let key = order.keyed.then(|| String::from_utf8_lossy(&data[KEY]).into_owned());
        let event = Event::from_utf8(EVENT, data).unwrap();
        match key {
            Some(key) => event.key(key),
            None => event,
        }
    };
    if order.many {
        let events: Vec<(Target<'_>, Event)> =
            order.lines(&body).map(|(address, data)| (target(address), event(body.slice(data)))).collect();
        let begun = Instant::now();
        let outcomes = hub.publish_many(events).await;
        assert!(outcomes.iter().all(Result::is_ok));
        return published(begun);
    }
    let (target, event) = (target(order.address), event(body.clone()));
    let begun = Instant::now();
    target.publish(event).await.unwrap();
    published(begun)
}

pub async fn axum(listener: TcpListener, options: Options, takeover: bool) {
    let hub = hub(options);
    let publish = async |State(hub): State<Hub>, RawQuery(query): RawQuery, body: Bytes| {
        publish(&hub, &query.unwrap_or_default(), body).await.map(::axum::body::Body::from)
    };
    let app =
        Router::new().route("/publish", post(publish)).with_state(hub.clone()).layer(hub.layer("/events", access));
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let listener = if takeover { hub.listener_with_takeover(listener) } else { hub.listener(listener) };
    ::axum::serve(listener, app).await.unwrap();
}

async fn handle(hub: Hub, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.method() != Method::POST {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NOT_FOUND;
        return Ok(response);
    }
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Ok(publish(&hub, parts.uri.query().unwrap_or_default(), body).await.map(Full::new))
}

pub async fn hyper(listener: TcpListener, options: Options) {
    let hub = hub(options);
    let inner = hub.clone();
    let app = hub.layer("/events", access).layer(service_fn(move |request| handle(inner.clone(), request)));
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(app.clone());
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(hub.io(tcp)), service));
    }
}
