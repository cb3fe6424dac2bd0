//! HTTP: the pages, the state that they load, and the requests that they send. Of the services,
//! only `sessions.rs` also reads requests.

use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{delete, get, post};
use axum::{Form, Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tower_sse::{EventStream, Hub, PublishError, StreamRequest, Subscription};

use crate::App;
use crate::error::Error;
use crate::reports::Reports;
use crate::sessions::{Session, Sessions, user};

/// The maximum size of the body of a request, in bytes.
const MAX_BODY: usize = 16 << 10;
const LAYOUT: &str = include_str!("pages/layout.html");
const SIGN_IN: &str = include_str!("pages/sign-in.html");
/// The name, the title and the main content of each page.
const PAGES: [(&str, &str, &str); 4] = [
    ("documents", "Documents", include_str!("pages/documents.html")),
    ("reports", "Reports", include_str!("pages/reports.html")),
    ("dashboard", "Dashboard", include_str!("pages/dashboard.html")),
    ("feed", "News", include_str!("pages/feed.html")),
];
const ASSETS: [(&str, &str, &str); 9] = [
    ("style.css", "text/css", include_str!("pages/style.css")),
    ("icon.svg", "image/svg+xml", include_str!("pages/icon.svg")),
    ("events.js", "text/javascript", include_str!("pages/events.js")),
    ("stream.js", "text/javascript", include_str!("pages/stream.js")),
    ("shell.js", "text/javascript", include_str!("pages/shell.js")),
    ("documents.js", "text/javascript", include_str!("pages/documents.js")),
    ("reports.js", "text/javascript", include_str!("pages/reports.js")),
    ("dashboard.js", "text/javascript", include_str!("pages/dashboard.js")),
    ("feed.js", "text/javascript", include_str!("pages/feed.js")),
];

pub(crate) fn router(hub: &Hub, app: App) -> Router {
    let sessions = app.sessions.clone();
    let pages = PAGES.into_iter().fold(Router::new(), |router, (name, title, main)| {
        router.route(&format!("/{name}"), get(async move |session: Caller| page(session.is_ok(), name, title, main)))
    });
    pages
        .route("/", get(Redirect::to("/documents")))
        .route("/sign-in", get(sign_in_page).post(sign_in))
        .route("/sign-out", post(sign_out))
        .route("/state/{page}", get(state))
        .route("/documents", post(create_document))
        .route("/documents/{id}", delete(delete_document))
        .route("/reports", post(start_report))
        .route("/reports/{id}", delete(stop_report))
        .route("/reports/{id}/events", get(report_events))
        .route("/feed", post(post_news))
        .route("/notifications/read", post(mark_notifications_read))
        .route("/assets/{name}", get(asset))
        // In production, serve this on a port that only Prometheus reaches.
        .route("/metrics", get(async |State(app): State<App>| app.exporter.render(&app.hub)))
        .with_state(app)
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn(guard))
        .layer(hub.layer("/events", sessions)) // after all routes
}

/// The session of a request, or the response to a request without a session.
type Caller = Result<Session, Problem>;

fn page(is_signed_in: bool, name: &str, title: &str, main: &str) -> Response {
    if !is_signed_in {
        return Redirect::to(&format!("/sign-in?next={name}")).into_response();
    }
    Html(LAYOUT.replace("{name}", name).replace("{title}", title).replace("{main}", main)).into_response()
}

async fn asset(Path(name): Path<String>) -> Result<impl IntoResponse, Problem> {
    let asset = ASSETS.into_iter().find(|(known, ..)| *known == name).ok_or(Error::Missing)?;
    Ok(([(header::CONTENT_TYPE, asset.1)], asset.2))
}

/// Returns the state of a page, and the position in the log from which its stream starts.
async fn state(State(app): State<App>, session: Session, Path(page): Path<String>) -> Result<Json<Value>, Problem> {
    let user = session.user;
    let position = app.replica.position().ok_or(Error::NotReady)?; // before the state
    let content = match page.as_str() {
        "documents" => json!(app.documents.list().await?),
        "reports" => json!(app.reports.of(user)),
        "dashboard" => json!(app.metrics.list()),
        "feed" => json!(app.feed.list()),
        _ => return Err(Error::Missing.into()),
    };
    Ok(Json(json!({
        "user": user.id,
        "position": position.to_string(),
        "content": content,
        "notifications": app.notifications.of(user),
    })))
}

#[derive(Deserialize)]
struct Text {
    text: String,
}

async fn create_document(
    State(app): State<App>,
    session: Session,
    Json(body): Json<Text>,
) -> Result<StatusCode, Problem> {
    app.replica.wait_until_applied(app.documents.create_document(session.user, &body.text).await?).await;
    Ok(StatusCode::CREATED)
}

async fn delete_document(
    State(app): State<App>,
    session: Session,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    app.replica.wait_until_applied(app.documents.delete_document(session.user, &id).await?).await;
    Ok(StatusCode::NO_CONTENT)
}

async fn post_news(State(app): State<App>, session: Session, Json(body): Json<Text>) -> Result<StatusCode, Problem> {
    app.replica.wait_until_applied(app.feed.post_news(session.user, &body.text).await?).await;
    Ok(StatusCode::CREATED)
}

#[derive(Deserialize)]
struct NewReport {
    limit: usize,
}

async fn start_report(
    State(reports): State<Reports>,
    session: Session,
    Json(body): Json<NewReport>,
) -> Result<StatusCode, Problem> {
    reports.start(session.user, body.limit).await?;
    Ok(StatusCode::ACCEPTED)
}

async fn stop_report(
    State(reports): State<Reports>,
    session: Session,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    reports.stop(session.user, &id).await?;
    Ok(StatusCode::ACCEPTED)
}

/// Opens a stream of the progress of a report, which ends with the report.
async fn report_events(
    State(app): State<App>,
    request: StreamRequest,
    session: Session,
    Path(id): Path<String>,
) -> Result<EventStream, Problem> {
    let reader = app.reports.reader(session.user, &id).await.map_err(Error::from)?;
    let progress = Subscription::run(reader).with_user(session.user.id).expires_at(session.expires);
    Ok(app.hub.respond(request, progress))
}

async fn mark_notifications_read(State(app): State<App>, session: Session) -> Result<StatusCode, Problem> {
    app.replica.wait_until_applied(app.notifications.mark_all_read(session.user).await?).await;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Deserialize)]
struct SignIn {
    user: String,
    #[serde(default)]
    next: String,
}

/// Returns the page of this name, or `documents`. So a link to the sign-in page cannot redirect to
/// another site.
fn known_page(name: &str) -> &'static str {
    PAGES.iter().find(|(known, ..)| *known == name).map_or("documents", |(known, ..)| known)
}

#[derive(Deserialize)]
struct SignInQuery {
    #[serde(default)]
    next: String,
}

async fn sign_in_page(Query(query): Query<SignInQuery>) -> Html<String> {
    Html(SIGN_IN.replace("{next}", known_page(&query.next)))
}

/// Signs a user in. The handler ends the previous session of the browser, so that its other tabs do
/// not continue with a different user.
async fn sign_in(
    State(sessions): State<Sessions>,
    session: Caller,
    Form(form): Form<SignIn>,
) -> Result<impl IntoResponse, Problem> {
    let user = user(&form.user).ok_or(Error::Invalid("This user does not exist."))?;
    if let Ok(session) = session {
        sessions.end(&session).await?;
    }
    let cookie = sessions.begin(user).map_err(|_| Error::NotReady)?;
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to(&format!("/{}", known_page(&form.next)))))
}

async fn sign_out(State(sessions): State<Sessions>, session: Caller) -> Result<Response, Problem> {
    let Ok(session) = session else { return Ok(Redirect::to("/sign-in").into_response()) };
    let cookie = sessions.end(&session).await?;
    Ok(([(header::SET_COOKIE, cookie)], Redirect::to("/sign-in")).into_response())
}

impl FromRequestParts<App> for Session {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, app: &App) -> Caller {
        app.sessions.of(&parts.headers).ok_or(Problem(StatusCode::UNAUTHORIZED, "Sign in first.".into()))
    }
}

/// Refuses changes that a page of another site requests, and forbids pages to load foreign content.
async fn guard(request: Request, next: Next) -> Response {
    if !request.method().is_safe() && !is_own(&request) {
        return Problem(StatusCode::FORBIDDEN, "Pages of other sites may not do this.".into()).into_response();
    }
    let mut response = next.run(request).await;
    for (name, value) in [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Returns whether a request comes from a page of this site, or from a program. Browsers send
/// `Sec-Fetch-Site`, and old browsers only `Origin`. Other programs send neither header.
fn is_own(request: &Request) -> bool {
    let text = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    // HTTP/2 has the host in the URI, and HTTP/1 in a header.
    let host = request.uri().authority().map(Authority::as_str).or(text("host"));
    match (text("sec-fetch-site"), text("origin")) {
        (Some(site), _) => site == "same-origin",
        // The origin `null` has no host.
        (None, Some(origin)) => origin.split_once("://").is_some_and(|(_, own)| Some(own) == host),
        (None, None) => true,
    }
}

/// An error response: one line of text that the page shows.
pub(crate) struct Problem(StatusCode, String);

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Error::Missing => StatusCode::NOT_FOUND,
            Error::LimitReached(_) => StatusCode::CONFLICT,
            Error::Publish(error) => error.status_code(),
            Error::Run(error) => error.status_code(),
            Error::NotReady => StatusCode::SERVICE_UNAVAILABLE,
            #[cfg(feature = "postgres")]
            Error::Database => StatusCode::SERVICE_UNAVAILABLE,
        };
        Self(status, error.to_string())
    }
}

impl From<PublishError> for Problem {
    fn from(error: PublishError) -> Self {
        Error::from(error).into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}
