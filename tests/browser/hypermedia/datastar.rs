fn headline_events(headline: &Headline) -> Vec<Event> {
    let id = headline.id;
    vec![
        patch_elements(&format!("#headline-{id}"), "remove", ""),
        patch_elements("#headlines", "prepend", &item(headline)),
    ]
}

fn patch_elements(selector: &str, mode: &str, html: &str) -> Event {
    let mut data = format!("selector {selector}\nmode {mode}");
    // Otherwise a line of a user's text could be another argument.
    for line in html.split(['\r', '\n']) {
        data += "\nelements ";
        data += line;
    }
    Event::new("datastar-patch-elements", data)
}

fn subscription() -> Subscription {
    Subscription::anonymous().topic("news").bare()
}
