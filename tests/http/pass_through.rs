//! Requests for other paths pass through the layer without an allocation or a boxed future.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::FutureExt;
use http::{Method, Request, Response};
use http_body::{Body, Frame};
use tower::{Layer, Service};
use tower_sse::{Hub, Public, TopicFilter};

/// An inner service that allocates a given number of times for each request.
#[derive(Clone, Copy, Debug)]
struct Inner {
    allocates: usize,
}

/// A body of one frame that is ready.
struct Once(Option<&'static [u8]>);

impl Body for Once {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(Bytes::from_static(bytes)))))
    }
}

impl Service<Request<()>> for Inner {
    type Response = Response<Once>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Once>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        for size in 1..=self.allocates {
            std::hint::black_box(vec![0_u8; size]);
        }
        ready(Ok(Response::new(Once(Some(b"inner")))))
    }
}

/// Does with a request everything that a server does, and returns the number of allocations.
fn allocations<S, B>(service: &mut S, method: Method, path: &'static str) -> u64
where
    S: Service<Request<()>, Response = Response<B>, Error = Infallible>,
    B: Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let mut request = Some(Request::new(()));
    let uri = http::Uri::from_static(path);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let measured = allocation_counter::measure(|| {
        let mut request = request.take().unwrap();
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
        assert!(service.poll_ready(&mut cx).is_ready());
        let Some(Ok(response)) = service.call(request).now_or_never() else { panic!("the response is not ready") };
        let mut body = std::pin::pin!(response.into_body());
        let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut cx) else { panic!("the frame is not ready") };
        assert_eq!(frame.into_data().unwrap(), "inner");
        assert!(matches!(body.as_mut().poll_frame(&mut cx), Poll::Ready(None)));
    });
    measured.count_total
}

fn layered<S>(
    hub: &Hub,
    inner: S,
) -> impl Service<Request<()>, Error = Infallible, Response = Response<impl Body<Data = Bytes, Error: std::fmt::Debug>>>
+ Clone
where
    S: Service<Request<()>, Response = Response<Once>, Error = Infallible> + Clone,
{
    hub.layer("/events", Public::topics(TopicFilter::any())).layer(inner)
}

#[test]
fn allocation_counter_counts_the_allocations_of_the_inner_service() {
    assert_eq!(allocations(&mut Inner { allocates: 0 }, Method::GET, "/other"), 0);
    assert_eq!(allocations(&mut Inner { allocates: 3 }, Method::GET, "/other"), 3);
}

#[test]
fn request_that_passes_through_the_layer_allocates_nothing() {
    let hub = Hub::builder().build().unwrap();
    for allocates in [0, 3] {
        let inner = Inner { allocates };
        let mut layered = layered(&hub, inner);
        for (method, path) in [
            (Method::GET, "/other"),
            (Method::POST, "/other?topic=a&topic=b"),
            (Method::GET, "/"),
            (Method::GET, "/events/more"),
            (Method::GET, "/EVENTS"),
            (Method::OPTIONS, "/events"),
            (Method::OPTIONS, "*"),
        ] {
            let alone = allocations(&mut inner.clone(), method.clone(), path);
            assert_eq!(alone, allocates as u64);
            assert_eq!(allocations(&mut layered, method, path), alone, "{path}");
        }
    }
}

#[test]
fn two_layers_allocate_nothing() {
    let hub = Hub::builder().build().unwrap();
    let access = Public::topics(TopicFilter::any());
    let mut twice = hub.layer("/a", access.clone()).layer(hub.layer("/b", access).layer(Inner { allocates: 0 }));
    assert_eq!(allocations(&mut twice, Method::GET, "/other"), 0);
}

#[test]
fn clone_of_a_layered_service_allocates_nothing() {
    let hub = Hub::builder().build().unwrap();
    let layered = layered(&hub, Inner { allocates: 0 });
    let measured = allocation_counter::measure(|| drop(std::hint::black_box(layered.clone())));
    assert_eq!(measured.count_total, 0);
}

#[test]
fn request_allocates_nothing_while_streams_are_open() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _guard = runtime.enter();
    let hub = Hub::builder().build().unwrap();
    let streams: Vec<_> = (0..100)
        .map(|n| hub.subscribe(tower_sse::Subscription::for_user(n).topic("t"), tower_sse::Cursor::Absent).unwrap())
        .collect();
    assert_eq!(allocations(&mut layered(&hub, Inner { allocates: 0 }), Method::GET, "/other"), 0);
    drop(streams);
}

#[test]
fn providing_the_hub_allocates_only_the_extension() {
    let hub = Hub::builder().build().unwrap();
    let mut providing =
        hub.layer("/events", Public::topics(TopicFilter::any())).provide().layer(Inner { allocates: 0 });
    let mut extensions = http::Extensions::new();
    let cost = allocation_counter::measure(|| drop(extensions.insert(hub.clone()))).count_total;
    assert!(cost > 0);
    assert_eq!(allocations(&mut providing, Method::GET, "/other"), cost);
}

/// A future that is so large that the layer's future would be smaller if it boxed this one.
struct Large([u8; 4096]);

impl Future for Large {
    type Output = Result<Response<Once>, Infallible>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(Response::new(Once(None))))
    }
}

#[derive(Clone, Copy, Debug)]
struct Slow;

impl Service<Request<()>> for Slow {
    type Response = Response<Once>;
    type Error = Infallible;
    type Future = Large;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Large {
        Large([0; 4096])
    }
}

#[test]
fn inner_future_is_not_boxed() {
    let hub = Hub::builder().build().unwrap();
    let mut layered = hub.layer("/events", Public::topics(TopicFilter::any())).layer(Slow);
    let measured = allocation_counter::measure(|| {
        let future = layered.call(Request::new(()));
        let (size, inner) = (size_of_val(&future), size_of::<Large>());
        assert!((inner..=inner + 64).contains(&size), "{size} bytes for {inner}");
        assert!(matches!(future.now_or_never(), Some(Ok(_))));
    });
    assert_eq!(measured.count_total, 0);
    assert_eq!(Large([0; 4096]).0.len(), size_of::<Large>());
}
