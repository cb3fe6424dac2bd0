//! Credentials, certificates and permissions of NATS users.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use nkeys::KeyPair;
use serde_json::{Value as Json, json};
use tower_sse::backplane::{
    Backplane, BackplaneError, Begun, ControlStream, Journals as _, LogPosition, Nats, NewRecord, ReadLimit, Value,
};
use tower_sse::test_kit::check_backplane;

use crate::kit::broker::{Broker, InMemory, REQUEST_LIMIT, range};
use crate::kit::certificate::Certificate;
use crate::kit::{PATIENCE, soon};
use crate::nats_server::NatsServer;

fn record(text: &str) -> NewRecord {
    NewRecord::new(Bytes::from(text.to_owned()))
}

/// A file that is deleted with this value.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("tower-sse-{}-{:x}", std::process::id(), fastrand::u64(..)));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// Signs claims as a JWT of NATS.
fn jwt(issuer: &KeyPair, subject: &KeyPair, claims: &Json) -> String {
    let issued_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let body = json!({
        "jti": fastrand::u64(..).to_string(), "iat": issued_at, "iss": issuer.public_key(),
        "sub": subject.public_key(), "name": "test", "nats": claims,
    });
    let header = json!({ "typ": "JWT", "alg": "ed25519-nkey" });
    let encode = |json: Json| URL_SAFE_NO_PAD.encode(json.to_string());
    let signed = format!("{}.{}", encode(header), encode(body));
    let signature = URL_SAFE_NO_PAD.encode(issuer.sign(signed.as_bytes()).unwrap());
    format!("{signed}.{signature}")
}

fn credentials(jwt: &str, seed: &str) -> String {
    format!(
        "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
         -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
}

/// The server trusts an operator, who has signed an account, which has signed a user.
#[tokio::test]
async fn a_credentials_file_is_read_for_each_connection_and_its_content_is_secret() {
    let (operator, account, system) = (KeyPair::new_operator(), KeyPair::new_account(), KeyPair::new_account());
    let limits = json!({
        "subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true, "conn": -1,
        "leaf": -1, "mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1,
    });
    let account_claims = json!({ "type": "account", "version": 2, "limits": limits });
    let system_claims = json!({ "type": "account", "version": 2, "limits": { "subs": -1, "data": -1, "payload": -1,
        "imports": -1, "exports": -1, "wildcards": true, "conn": -1, "leaf": -1 } });
    let configuration = format!(
        "operator: {}\nsystem_account: {}\nresolver: MEMORY\nresolver_preload: {{ {}: {}, {}: {} }}\n",
        jwt(&operator, &operator, &json!({ "type": "operator", "version": 2 })),
        system.public_key(),
        account.public_key(),
        jwt(&operator, &account, &account_claims),
        system.public_key(),
        jwt(&operator, &system, &system_claims),
    );
    let Some(server) = NatsServer::start_configured(&configuration) else { return };
    let user_claims = json!({ "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1 });
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let seeds = [user.seed().unwrap(), stranger.seed().unwrap()];
    let valid = credentials(&jwt(&account, &user, &user_claims), &seeds[0]);
    // This key belongs to another user than the JWT.
    let invalid = credentials(&jwt(&account, &user, &user_claims), &seeds[1]);

    let file = File::new(&invalid);
    let log = || Nats::new(&server.url(), "n").unwrap().credentials_file(&file.0);
    let mut texts = vec![log().describe(), format!("{:?}", log())];
    for content in [&*invalid, "nothing", ""] {
        std::fs::write(&file.0, content).unwrap();
        let error = soon(log().state(None)).await.unwrap_err();
        assert!(error.is_rejected(), "{error}");
        texts.push(format!("{error} {error:?}"));
    }
    let missing = Nats::new(&server.url(), "n").unwrap().credentials_file("/no such file");
    let error = soon(missing.state(None)).await.unwrap_err();
    assert!(error.is_rejected() && error.to_string().contains("cannot be read"), "{error}");
    // The same adapter reads the corrected file.
    let log = log();
    soon(log.state(None)).await.unwrap_err();
    std::fs::write(&file.0, &valid).unwrap();
    assert_eq!(soon(log.append(vec![record("x")], None)).await.remove(0).unwrap().sequence, 1);
    for text in texts {
        assert!(!seeds.iter().any(|seed| text.contains(seed)) && !text.contains("eyJ"), "{text}");
    }
}

#[tokio::test]
async fn an_nkey_signs_in_and_its_seed_is_secret() {
    let (user, stranger) = (KeyPair::new_user(), KeyPair::new_user());
    let configuration = format!("authorization {{ users = [ {{ nkey: {} }} ] }}\n", user.public_key());
    let Some(server) = NatsServer::start_configured(&configuration) else { return };
    let log = |seed: &str| Nats::new(&server.url(), "n").unwrap().nkey(seed);
    soon(log(&user.seed().unwrap()).state(None)).await.unwrap();
    for seed in [stranger.seed().unwrap(), "SUwrong".to_owned()] {
        let error = soon(log(&seed).state(None)).await.unwrap_err();
        assert!(error.is_rejected(), "{error}");
        for text in [format!("{error} {error:?}"), log(&seed).describe(), format!("{:?}", log(&seed))] {
            assert!(!text.contains(&seed), "{text}");
        }
    }
}

/// The certificate of the server is that of a private authority, and the server verifies clients.
#[tokio::test]
async fn a_private_authority_and_a_client_certificate_are_used() {
    let Some(certificate) = Certificate::make() else { return };
    let (pem, key) = (certificate.certificate(), certificate.key());
    let tls = ["--tls", "--tlscert", &pem, "--tlskey", &key, "--tlsverify", "--tlscacert", &pem];
    let Some(server) = NatsServer::start_with(&tls) else { return };
    let log = || Nats::new(&server.url().replace("nats://", "tls://"), "n").unwrap();
    for without in [log(), log().root_certificates(&pem), log().client_certificate(&pem, &key)] {
        soon(without.state(None)).await.unwrap_err();
    }
    soon(log().root_certificates(&pem).client_certificate(&pem, &key).state(None)).await.unwrap();
}

/// The permissions of a user.
#[derive(Clone)]
struct Permissions {
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Permissions {
    /// Writes a user whose password is its name.
    fn user(&self, name: &str) -> String {
        let Self { publish, subscribe } = self;
        let (publish, subscribe) = (json!(publish), json!(subscribe));
        format!("{{ user: {name}, password: {name}, permissions: {{ publish: {publish}, subscribe: {subscribe} }} }}\n")
    }

    /// The prefix of inboxes in the list of subscriptions.
    fn prefix(&self) -> &str {
        self.subscribe[0].strip_suffix(".>").unwrap()
    }
}

/// The configuration in the documentation, with the name of each user as its password.
fn documented() -> String {
    let document = include_str!("../../docs/guide/scaling.md");
    let block = document.split("```text").find(|block| block.contains("TOWER_SSE_RUN = ")).unwrap();
    let block = block.split("```").next().unwrap();
    block.replace("$TOWER_SSE_PASSWORD_1", "deploy").replace("$TOWER_SSE_PASSWORD_2", "shop")
}

/// The permissions of a role in the documentation.
fn documented_role(name: &str) -> Permissions {
    let documented = documented();
    let role = documented.split(&format!("TOWER_SSE_{name} = {{")).nth(1).unwrap().split('}').next().unwrap();
    let list = |name: &str| {
        let list = role.split(name).nth(1).unwrap().split(']').next().unwrap();
        list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
    };
    Permissions { publish: list("publish:"), subscribe: list("subscribe:") }
}

/// Uses everything of a log. Returns the errors. It is an error if no record or no message arrives
/// within `limit`.
pub async fn use_everything(log: &impl Backplane, limit: Duration) -> Vec<BackplaneError> {
    let late = |_| Err(BackplaneError::unknown("no record arrived in time"));
    let mut errors = Vec::new();
    let mut note = |result: Result<(), BackplaneError>| errors.extend(result.err());
    let state = soon(log.state(None)).await;
    let mut value = record("value");
    value.values = vec![Value::new("id", false)];
    for result in soon(log.append(vec![record("x"), value], None)).await {
        note(result.map(drop));
    }
    if let Ok(state) = state {
        note(soon(log.range(state.last, ReadLimit::records(10))).await.map(drop));
        // A read that finds no record asks for the next one.
        note(soon(log.range(state.last + 1_000, ReadLimit::records(10))).await.map(drop));
        let next = tokio::time::timeout(limit, log.tail(state.last).next().map(Option::unwrap)).await;
        note(next.unwrap_or_else(late).map(drop));
        // The log begins a new epoch.
        let all = LogPosition::new(state.epoch, u64::from(u32::MAX));
        note(soon(log.state(Some(all))).await.map(drop));
    }
    note(state.map(drop));
    note(soon(log.values()).await.map(drop));
    let mut messages = log.listen(None);
    let listened = async { messages.next().await.unwrap().map(drop) };
    let sent = async {
        let mut sent = Ok(());
        // The first messages may precede the subscription.
        for _ in 0..20 {
            sent = log.broadcast(ControlStream::Commands, "message".into()).await;
            if sent.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        sent
    };
    let (sent, listened) = futures::join!(soon(sent), tokio::time::timeout(limit, listened));
    note(sent);
    note(listened.unwrap_or_else(|_| Err(BackplaneError::unknown("no message arrived in time"))));
    note(soon(log.put_once("key", "value".into(), Duration::from_secs(60))).await);
    note(soon(log.take("key")).await.map(drop));
    note(soon(log.put_shared("list", "value".into(), Duration::from_secs(60))).await);
    note(soon(log.get_shared("list")).await.map(drop));
    let run = format!("run {:x}", fastrand::u64(..));
    match soon(log.begin_journal(&run, "1".into())).await {
        Ok(Begun::New(id)) => {
            note(soon(log.append_journal(&run, id, 1, "2".into(), None)).await.map(drop));
            note(soon(log.append_journal(&run, id, 2, "3".into(), None)).await.map(drop));
            note(soon(log.read_journal(&run, Some(id), 0, 1 << 20)).await.map(drop));
        }
        begun => note(begun.map(drop)),
    }
    errors
}

/// The namespace of the lists in the documentation.
const NAMESPACE: &str = "default";

fn log_of(server: &NatsServer, user: &str, prefix: &str) -> Nats {
    let url = server.url().replace("nats://", &format!("nats://{user}:{user}@"));
    let log = Nats::new(&url, NAMESPACE).unwrap().inbox_prefix(prefix).unwrap();
    log.timeout(Duration::from_secs(1))
}

/// The adapter sends these requests without waiting for an answer. Without them, data stays on the
/// server for longer.
const CLEANING: [&str; 4] = [
    "$JS.API.STREAM.PURGE.tower-sse-journals_default",
    "$JS.API.CONSUMER.DELETE.tower-sse-log_default.>",
    "$JS.API.CONSUMER.DELETE.tower-sse-values_default.>",
    "$JS.API.CONSUMER.DELETE.tower-sse-journals_default.>",
];

/// The adapter sends these requests after a loss of records.
const RENEWING: [&str; 2] =
    ["$JS.API.STREAM.DELETE.tower-sse-values_default", "$JS.API.STREAM.CREATE.tower-sse-values_default"];

impl Permissions {
    fn without(&self, subjects: &[&str]) -> Self {
        let publish: Vec<_> =
            self.publish.iter().filter(|subject| !subjects.contains(&subject.as_str())).cloned().collect();
        assert_eq!(publish.len() + subjects.len(), self.publish.len(), "not all of {subjects:?} are documented");
        Self { publish, ..self.clone() }
    }
}

/// Starts a server with the documented users and these users.
fn server_with(users: &str) -> Option<NatsServer> {
    NatsServer::start_configured(&documented().replace("users = [", &format!("users = [\n{users}")))
}

/// Sends a request to the JetStream API with the documented role that sets streams up.
async fn set_up(server: &NatsServer, request: &str, body: &Json) -> Json {
    let prefix = documented_role("SETUP").prefix().to_owned();
    let options = async_nats::ConnectOptions::with_user_and_password("deploy".into(), "deploy".into());
    let client = options.custom_inbox_prefix(prefix).connect(server.url()).await.unwrap();
    let answer = client.request(format!("$JS.API.{request}"), body.to_string().into()).await.unwrap();
    let answer: Json = serde_json::from_slice(&answer.payload).unwrap();
    assert!(answer["error"].is_null(), "{request}: {answer}");
    answer
}

/// Reads each stream that is read to an end, and a run after its end.
async fn read_to_the_end(log: &Nats) {
    soon(log.append(vec![record("x")], None)).await.remove(0).unwrap();
    range(log, 0, 10).await;
    soon(log.values()).await.unwrap();
    let Begun::New(id) = soon(log.begin_journal("run", "1".into())).await.unwrap() else { panic!() };
    soon(log.append_journal("run", id, 1, "2".into(), None)).await.unwrap();
    soon(log.read_journal("run", None, 0, 1 << 20)).await.unwrap();
    soon(log.append_journal("run", id, 2, "3".into(), Some(Duration::from_millis(1)))).await.unwrap();
    // A read of the newest entry needs no consumer.
    soon(async { while log.read_journal("run", None, 2, 1 << 20).await.unwrap().is_some() {} }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documented_permissions_are_enough_and_a_missing_one_is_named() {
    let (role, setup) = (documented_role("RUN"), documented_role("SETUP"));
    let is_checked = |subject: &&String| ![&CLEANING[..], &RENEWING].concat().contains(&subject.as_str());
    let mut users = String::new();
    let mut missing = Vec::new();
    for subject in role.publish.iter().filter(is_checked) {
        let name = format!("without{}", missing.len());
        users += &role.without(&[subject]).user(&name);
        missing.push((name, subject.as_str()));
    }
    assert_eq!(missing.len(), 24);
    let Some(server) = server_with(&users) else { return };

    let deploy = log_of(&server, "deploy", setup.prefix());
    soon(deploy.state(None)).await.unwrap();
    let shop = log_of(&server, "shop", role.prefix());
    for log in [&shop, &deploy] {
        let errors = use_everything(&log.clone().timeout(Duration::from_secs(5)), Duration::from_secs(10)).await;
        assert!(errors.is_empty(), "{errors:?}");
    }
    read_to_the_end(&shop).await;
    assert!(!server.log().contains("Violation"), "{}", server.log());

    for (name, subject) in &missing {
        let errors = use_everything(&log_of(&server, name, role.prefix()), Duration::from_secs(1)).await;
        let beginning = subject.split(['*', '>']).next().unwrap().trim_end_matches('.').to_ascii_lowercase();
        let is_named =
            |error: &BackplaneError| error.is_rejected() && error.to_string().to_ascii_lowercase().contains(&beginning);
        assert!(errors.iter().any(is_named), "without {subject}: {errors:?}");
    }

    // Another prefix and another namespace than the permitted ones.
    let error = soon(log_of(&server, "shop", "_INBOX_other").state(None)).await.unwrap_err();
    assert!(error.is_rejected() && error.to_string().contains("_INBOX_other"), "{error}");
    let url = server.url().replace("nats://", "nats://shop:shop@");
    let other = Nats::new(&url, "other").unwrap().inbox_prefix(role.prefix()).unwrap();
    let error = soon(other.state(None)).await.unwrap_err();
    assert!(error.is_rejected() && error.to_string().contains("tower-sse_other"), "{error}");
}

/// The calls succeed, and each subject is requested. The server keeps the consumers of reads for 30
/// s, and the events of a run for days.
#[tokio::test]
async fn without_the_permissions_to_clean_up_consumers_and_ended_runs_stay_on_the_server() {
    let role = documented_role("RUN");
    let Some(server) = server_with(&role.without(&CLEANING).user("unclean")) else { return };
    soon(log_of(&server, "deploy", documented_role("SETUP").prefix()).state(None)).await.unwrap();
    let state = async |subject: &str| {
        let stream = subject.split('.').nth(4).unwrap();
        let info = set_up(&server, &format!("STREAM.INFO.{stream}"), &json!({})).await;
        let kept = if subject.contains("PURGE") { "messages" } else { "consumer_count" };
        info["state"][kept].as_u64().unwrap()
    };
    // The server has its own consumer, with which it copies values.
    let mut before = Vec::new();
    for subject in CLEANING {
        before.push(state(subject).await);
    }
    for (user, keeps) in [("shop", false), ("unclean", true)] {
        // Not dropped before the server has its requests.
        let log = log_of(&server, user, role.prefix()).timeout(Duration::from_secs(5));
        read_to_the_end(&log).await;
        for (subject, before) in CLEANING.into_iter().zip(&before) {
            let denied = subject.trim_end_matches('>');
            let kept = || async { (state(subject).await != *before, server.log().contains(denied)) };
            let done = async {
                while kept().await != (keeps, keeps) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let is_done = tokio::time::timeout(PATIENCE, done).await.is_ok();
            assert!(is_done, "{user} {subject}: {before} before, now {:?}", kept().await);
        }
    }
}

/// An administrator has restored the log without its newest records, so the values are ahead of it.
#[tokio::test]
async fn after_a_loss_a_missing_permission_to_renew_the_values_is_named() {
    let role = documented_role("RUN");
    let users = [("undeleting", RENEWING[0]), ("uncreating", RENEWING[1])];
    let listed = users.map(|(name, subject)| role.without(&[subject]).user(name)).concat();
    let Some(server) = server_with(&listed) else { return };
    let deploy = log_of(&server, "deploy", documented_role("SETUP").prefix());
    let before = soon(deploy.state(None)).await.unwrap();
    let mut value = record("lost");
    value.values = vec![Value::new("id", false)];
    assert!(soon(deploy.append(vec![record("x"), value], None)).await.iter().all(Result::is_ok));
    let info = async |stream: &str| set_up(&server, &format!("STREAM.INFO.{stream}"), &json!({})).await;
    soon(async { while info("tower-sse-values_default").await["state"]["messages"] != 1 {} }).await;
    let config = info("tower-sse-log_default").await["config"].clone();
    set_up(&server, "STREAM.DELETE.tower-sse-log_default", &json!({})).await;
    set_up(&server, "STREAM.CREATE.tower-sse-log_default", &config).await;

    for (user, subject) in users {
        let log = log_of(&server, user, role.prefix()).timeout(Duration::from_secs(5));
        let error = soon(log.state(None)).await.unwrap_err();
        assert!(error.is_rejected() && error.to_string().contains(subject), "without {subject}: {error}");
    }
    let shop = log_of(&server, "shop", role.prefix()).timeout(Duration::from_secs(5));
    assert_ne!(soon(shop.state(None)).await.unwrap().epoch, before.epoch);
    assert!(soon(shop.values()).await.unwrap().is_empty());
}

/// The server reports a denied message before it acknowledges the messages that it stores.
#[tokio::test]
async fn a_denied_message_makes_no_stored_record_of_the_connection_rejected() {
    let setup = documented_role("SETUP");
    let mut publish: Vec<_> = setup.publish[1..].into();
    publish.push(format!("tower-sse.{NAMESPACE}.r.*"));
    let configuration =
        format!("authorization {{ users = [ {} ] }}\n", Permissions { publish, ..setup.clone() }.user("plain"));
    let Some(server) = NatsServer::start_configured(&configuration) else { return };
    let log = log_of(&server, "plain", setup.prefix()).timeout(Duration::from_secs(5));
    soon(log.state(None)).await.unwrap();
    for _ in 0..10 {
        let mut value = record("value");
        value.values = vec![Value::new("id", false)];
        let mut records = vec![value];
        records.extend((0..200).map(|_| record("x")));
        let mut results = soon(log.append(records, None)).await;
        let denied = results.remove(0).unwrap_err();
        assert!(denied.is_rejected() && denied.to_string().contains(".v."), "{denied}");
        assert!(results.iter().all(Result::is_ok), "{:?}", results.iter().find(|result| result.is_err()));
        let records = (0..10).map(|_| record("x")).collect();
        let (appended, sent) =
            futures::join!(log.append(records, None), log.broadcast(ControlStream::Commands, "message".into()));
        assert!(sent.unwrap_err().is_rejected());
        assert!(appended.iter().all(Result::is_ok), "{appended:?}");
    }
}

/// The contract uses namespaces of its own, so the lists of the documentation are changed to these.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapter_keeps_the_contract_with_the_documented_permissions() {
    let setup = documented_role("SETUP");
    let (names, memory) = (Mutex::new(BTreeSet::new()), InMemory::default());
    check_backplane(|name| {
        names.lock().unwrap().insert(name.replace('_', "_5F"));
        memory.log(name)
    })
    .await;
    let names = names.into_inner().unwrap();
    let publish = names.iter().flat_map(|name| setup.publish.iter().map(|list| list.replace(NAMESPACE, name)));
    let permissions = Permissions { publish: publish.collect(), ..setup.clone() };
    let configuration = format!("authorization {{ users = [ {} ] }}\n", permissions.user("deploy"));
    let Some(server) = NatsServer::start_configured(&configuration) else { return };
    let url = server.url().replace("nats://", "nats://deploy:deploy@");
    let log = |name: &str| Nats::new(&url, name).unwrap().inbox_prefix(setup.prefix()).unwrap();
    check_backplane(|name| log(name).timeout(REQUEST_LIMIT)).await;
    assert!(!server.log().contains("Violation"), "{}", server.log());
}
