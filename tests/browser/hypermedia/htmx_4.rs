fn headline_events(headline: &Headline) -> Vec<Event> {
    vec![Event::unnamed(item(headline))]
}

fn subscription() -> Subscription {
    Subscription::anonymous().topic("news")
}
