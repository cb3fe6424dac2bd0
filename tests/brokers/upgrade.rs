//! A rolling upgrade: a hub of this version beside a hub that writes as a later version.

use std::time::Duration;

use http::Request;
use tower_sse::backplane::{Backplane, Memory};
use tower_sse::{
    Cursor, Disconnect, EndReason, Event, GapReason, Hub, HubBuilder, Refusal, Retention, RunState, StreamRequest,
    Subscriber, SubscriberItem, Subscription, Ticket, TopicFilter, UserId,
};

use crate::kit::{soon, until};
use crate::next_version::{NextVersion, UNREADABLE};

fn builder() -> HubBuilder {
    Hub::builder()
        .peer_timeout(Duration::from_millis(900))
        .presence_grace(Duration::from_millis(50))
        .presence_for(TopicFilter::prefix("room/"))
        .retention_for(TopicFilter::prefix("room/"), Retention::latest_per_key())
}

/// A hub of this version and a hub of the later version, on one log.
async fn hubs() -> (Hub, Hub) {
    let log = Memory::new();
    let start = |log: Box<dyn Backplane>| builder().backplane(log).build().unwrap();
    let (present, next) = (start(Box::new(log.clone())), start(Box::new(NextVersion(log))));
    until(|| present.is_ready() && next.is_ready()).await;
    (present, next)
}

fn open(hub: &Hub, user: &str, topic: &str) -> Subscriber {
    hub.subscribe(Subscription::for_user(user).topic(topic), Cursor::Absent).unwrap()
}

/// Returns the next event or gap.
async fn next_item(stream: &mut Subscriber) -> SubscriberItem {
    loop {
        let item = soon(stream.next()).await.unwrap();
        if matches!(item, SubscriberItem::Event(_) | SubscriberItem::Gap { .. } | SubscriberItem::End(_)) {
            return item;
        }
    }
}

async fn next_data(stream: &mut Subscriber) -> String {
    match next_item(stream).await {
        SubscriberItem::Event(event) => event.data,
        other => panic!("not an event: {other:?}"),
    }
}

#[tokio::test]
async fn records_with_new_fields_are_delivered_and_unreadable_ones_are_a_gap_for_their_audience() {
    let (present, next) = hubs().await;
    let mut all = [open(&present, "ada", "news"), open(&next, "ada", "news")];
    let mut other = open(&present, "bea", "sports");
    let publish = async |hub: &Hub, topic: &str, event| soon(hub.topic(topic).publish(event)).await.unwrap();
    publish(&next, "news", Event::unnamed("one")).await;
    for stream in &mut all {
        assert_eq!(next_data(stream).await, "one");
    }
    publish(&next, "news", Event::new(UNREADABLE, "two")).await;
    let gap = next_item(&mut all[0]).await;
    assert!(matches!(gap, SubscriberItem::Gap { reason: GapReason::Lost, .. }), "{gap:?}");
    assert_eq!(next_data(&mut all[1]).await, "two");
    publish(&next, "news", Event::unnamed("three")).await;
    for stream in &mut all {
        assert_eq!(next_data(stream).await, "three");
    }
    publish(&next, "sports", Event::unnamed("four")).await;
    assert_eq!(next_data(&mut other).await, "four", "an unreadable record is no gap for another topic");
    assert_eq!((present.stats().skipped, next.stats().skipped), (1, 0));
    publish(&present, "news", Event::unnamed("five")).await;
    for stream in &mut all {
        assert_eq!(next_data(stream).await, "five");
    }
}

#[tokio::test]
async fn current_values_with_new_fields_are_delivered() {
    let (present, next) = hubs().await;
    soon(next.topic("room/7").publish(Event::unnamed("21.5").key("boiler"))).await.unwrap();
    let mut page = open(&present, "ada", "room/7");
    loop {
        match next_item(&mut page).await {
            SubscriberItem::Event(event) if event.name == "hub.joined" => {}
            SubscriberItem::Event(event) => break assert_eq!(event.data, "21.5"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn presence_and_commands_work_in_both_directions() {
    let (present, next) = hubs().await;
    for (one, two) in [(&present, &next), (&next, &present)] {
        let mut page =
            one.subscribe(Subscription::for_user("ada").topic("room/7").data("Ada"), Cursor::Absent).unwrap();
        until(|| two.topic("room/7").count() == 1).await;
        let presence = two.topic("room/7").presence();
        assert_eq!(presence.members[0].data_json(), Some(r#""Ada""#));
        soon(two.user("ada").join("news").into_future()).await.unwrap();
        until(|| one.topic("news").count() == 1 && two.topic("news").count() == 1).await;
        soon(two.user("ada").leave("news")).await.unwrap();
        until(|| one.topic("news").count() == 0 && two.topic("news").count() == 0).await;
        soon(two.user("ada").disconnect(Disconnect::now())).await.unwrap();
        loop {
            if let SubscriberItem::End(reason) = next_item(&mut page).await {
                break assert_eq!(reason, EndReason::Disconnected);
            }
        }
        until(|| two.topic("room/7").count() == 0 && !two.user("ada").is_online()).await;
    }
    // A complete list is a value at the broker.
    let pages: Vec<_> = (0..20).map(|n| open(&next, &format!("user {n}"), "news")).collect();
    let later = present.topic("news");
    until(|| later.count() == 20).await;
    drop(pages);
    until(|| later.count() == 0).await;
}

#[tokio::test]
async fn a_hub_that_starts_later_reads_the_list_of_connections_of_the_later_version() {
    let log = Memory::new();
    let next = builder().backplane(NextVersion(log.clone())).build().unwrap();
    until(|| next.is_ready()).await;
    let pages: Vec<_> = (0..50).map(|n| open(&next, &format!("user {n}"), "news")).collect();
    let present = builder().backplane(log).build().unwrap();
    until(|| present.topic("news").count() == 50).await;
    drop(pages);
}

#[tokio::test]
async fn a_run_with_new_fields_is_read_and_a_run_with_an_unreadable_entry_is_asked_for_again() {
    let (present, next) = hubs().await;
    let writer = soon(next.run("answers/7").begin().into_future()).await.unwrap();
    writer.publish(Event::unnamed("one")).await.unwrap();
    let run = present.run("answers/7");
    let mut stream = present.subscribe(Subscription::run(soon(run.reader()).await.unwrap()), None).unwrap();
    let SubscriberItem::Event(one) = next_item(&mut stream).await else { panic!("no event") };
    assert_eq!(one.data, "one");
    writer.publish(Event::new(UNREADABLE, "two")).await.unwrap();
    // The page reconnects until it reaches an instance of the later version.
    assert_eq!(next_item(&mut stream).await, SubscriberItem::End(EndReason::Lagged));
    for cursor in [Cursor::Absent, Cursor::from(one.position)] {
        let reader = soon(run.reader()).await.unwrap();
        let refused = present.subscribe(Subscription::run(reader), cursor).unwrap_err();
        assert!(refused.is_unavailable(), "{refused:?}");
    }
    assert_eq!(soon(run.state()).await.unwrap(), RunState::Active);
    let reader = soon(next.run("answers/7").reader()).await.unwrap();
    let mut resumed = next.subscribe(Subscription::run(reader), one.position).unwrap();
    assert_eq!(next_data(&mut resumed).await, "two");
    // The older version can still stop the run.
    assert!(soon(run.stop()).await.unwrap());
    soon(writer.stopped()).await;
    writer.finish().await.unwrap();
    assert_eq!(next_item(&mut resumed).await, SubscriberItem::End(EndReason::Stopped));
}

async fn issue(hub: &Hub, subscription: Subscription) -> Ticket {
    soon(hub.ticket(subscription, Duration::from_secs(60))).await.unwrap()
}

async fn redeem(hub: &Hub, ticket: &Ticket) -> Result<Subscription, Refusal> {
    let request = Request::get(format!("/?ticket={}", ticket.as_str())).body(()).unwrap();
    soon(hub.redeem(&StreamRequest::from_request(&request))).await
}

#[tokio::test]
async fn a_ticket_with_new_fields_is_redeemed() {
    let (present, next) = hubs().await;
    for scope in [None, Some("acme")] {
        let mut subscription = Subscription::for_user("ada").topic("news");
        if let Some(scope) = scope {
            subscription = subscription.in_scope(scope);
        }
        for (issuer, other) in [(&next, &present), (&present, &next)] {
            let ticket = issue(issuer, subscription.clone()).await;
            let redeemed = redeem(other, &ticket).await.unwrap();
            assert_eq!((redeemed.user().map(UserId::as_str), redeemed.scope()), (Some("ada"), scope));
            assert!(redeem(other, &ticket).await.is_err());
        }
    }
}

#[tokio::test]
async fn a_ticket_of_an_unknown_version_is_unauthorized_and_used_up() {
    let (present, next) = hubs().await;
    let subscription = Subscription::for_user("ada").topic(UNREADABLE);
    let ticket = issue(&next, subscription.clone()).await;
    redeem(&next, &ticket).await.unwrap();
    let ticket = issue(&next, subscription).await;
    for hub in [&present, &next] {
        let refused = redeem(hub, &ticket).await.unwrap_err();
        assert_eq!(refused, Refusal::unauthorized());
    }
}
