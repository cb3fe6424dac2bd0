fn headline_events(headline: &Headline) -> Vec<Event> {
    let delete = format!("<li id='headline-{}' hx-swap-oob='delete'></li>", headline.id);
    vec![Event::new("headline", delete + &item(headline))]
}

fn subscription() -> Subscription {
    Subscription::anonymous().topic("news")
}
