fn headline_events(headline: &Headline) -> Vec<Event> {
    let template = format!("<template>{}</template>", item(headline));
    let action = "<turbo-stream action='prepend' target='headlines'>";
    vec![Event::unnamed(format!("{action}{template}</turbo-stream>"))]
}

fn subscription() -> Subscription {
    Subscription::anonymous().topic("news")
}
