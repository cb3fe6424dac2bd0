//! What is printed: the figures, then the targets.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::cases::Sample;
use crate::servers::Kind;
use crate::stats::Spread;

/// Where, with what and when it was measured.
pub fn machine(cpus: usize, pinned: bool, has_nchan: bool) -> Value {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "cpu": model.map_or("unknown", |(_, model)| model),
        "cpus": cpus,
        "kernel": kernel.trim(),
        "date": said("date", &["-u", "+%Y-%m-%d"]),
        "commit": said("git", &["describe", "--always", "--dirty"]),
        "pinned": pinned,
        "nchan": has_nchan,
    })
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(|_| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// A figure of one kind in one case, in one round.
fn figure(round: &[Sample], case: &str, kind: Kind, name: &str) -> Option<f64> {
    let mut of_case = round.iter().filter(|sample| sample.case == case && sample.kind == kind);
    of_case.find_map(|sample| sample.figures.iter().find(|figure| figure.0 == name).map(|figure| figure.1))
}

/// Of each round one value, where there is one.
fn over(rounds: &[Vec<Sample>], value: impl Fn(&[Sample]) -> Option<f64>) -> Option<Spread> {
    Spread::of(rounds.iter().filter_map(|round| value(round)).collect())
}

/// How a figure is shown.
struct Column {
    title: &'static str,
    figure: &'static str,
    /// What it is divided by, and how many digits follow.
    unit: f64,
    digits: usize,
}

const fn column(title: &'static str, figure: &'static str, unit: f64, digits: usize) -> Column {
    Column { title, figure, unit, digits }
}

const COLUMNS: &[Column] = &[
    column("deliveries/s", "deliveries_per_s", 1.0, 0),
    column("CPU, us", "cpu_ns_per_delivery", 1e3, 2),
    column("p50, ms", "p50_ns", 1e6, 2),
    column("p99, ms", "p99_ns", 1e6, 2),
    column("bytes", "bytes_per_delivery", 1.0, 0),
    column("in a read", "deliveries_per_read", 1.0, 1),
    column("publish, us", "publish_ns", 1e3, 1),
    column("connects/s", "connects_per_s", 1.0, 0),
    column("CPU of a connect, us", "cpu_ns_per_connect", 1e3, 1),
    column("resumes/s", "resumes_per_s", 1.0, 0),
    column("CPU of a resume, us", "cpu_ns_per_resume", 1e3, 1),
    column("memory of a connection, B", "memory_per_connection", 1.0, 0),
    column("the same at most, B", "memory_at_most_per_connection", 1.0, 0),
    column("events/s", "events_per_s", 1.0, 0),
    column("delivered of all", "deliveries_per_event_and_listener", 1.0, 3),
];

/// What the ratio of a table is of.
const MAIN: &[&str] = &["cpu_ns_per_delivery", "cpu_ns_per_connect", "cpu_ns_per_resume", "memory_per_connection"];

pub fn print(machine: &Value, rounds: &[Vec<Sample>]) {
    let text = |name: &str| machine[name].as_str().unwrap_or_default().to_owned();
    println!(
        "{} x {}, Linux {}, {}, commit {}; medians of {} rounds, {}.",
        machine["cpus"],
        text("cpu"),
        text("kernel"),
        text("date"),
        text("commit"),
        rounds.len(),
        if machine["pinned"] == true { "server and load on a CPU each" } else { "server and load not pinned" }
    );
    if machine["nchan"] == false {
        println!("Left out: nchan.");
    }
    let mut cases: Vec<&str> = Vec::new();
    for sample in rounds.iter().flatten() {
        if !cases.contains(&sample.case) {
            cases.push(sample.case);
        }
    }
    for case in cases {
        print_case(case, rounds);
    }
    print_targets(rounds);
}

fn print_case(case: &str, rounds: &[Vec<Sample>]) {
    let kinds: Vec<Kind> = Kind::ALL
        .into_iter()
        .filter(|kind| rounds.iter().flatten().any(|sample| sample.case == case && sample.kind == *kind))
        .collect();
    let spread = |kind: Kind, name: &str| over(rounds, |round| figure(round, case, kind, name));
    let columns: Vec<&Column> =
        COLUMNS.iter().filter(|column| kinds.iter().any(|kind| spread(*kind, column.figure).is_some())).collect();
    let main = MAIN.iter().find(|name| columns.iter().any(|column| column.figure == **name));
    let references: Vec<Kind> = [Kind::AxumFloor, Kind::HyperFloor, Kind::RawCoalescing, Kind::AxumFloorThreads]
        .into_iter()
        .filter(|kind| main.is_some() && kinds.len() > 1 && kinds.contains(kind))
        .collect();
    let titles = columns.iter().map(|column| column.title.to_owned());
    let main_title = columns.iter().find(|column| Some(&column.figure) == main).map_or("", |column| column.title);
    let ratios = references.iter().map(|kind| format!("to {}", kind.name()));
    let head: Vec<String> = titles.chain(ratios).collect();
    println!(
        "\n**{case}**{}\n",
        if references.is_empty() { String::new() } else { format!(" (ratios: {main_title})") }
    );
    println!("| | {} |\n|---|{}", head.join(" | "), "---:|".repeat(head.len()));
    for kind in kinds {
        let values = columns.iter().map(|column| {
            let value = spread(kind, column.figure).map(|spread| spread.median / column.unit);
            value.map_or_else(String::new, |value| number(value, column.digits))
        });
        let ratios = references.iter().map(|reference| {
            let ratio = over(rounds, |round| {
                // A ratio across runtimes would count the runtime.
                let is_fair = kind.has_threads() == reference.has_threads();
                is_fair.then_some(figure(round, case, kind, main?)? / figure(round, case, *reference, main?)?)
            });
            ratio.map_or_else(String::new, |ratio| with_spread(ratio, 2))
        });
        println!("| {} | {} |", kind.name(), values.chain(ratios).collect::<Vec<_>>().join(" | "));
    }
}

/// With commas between thousands.
fn number(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    let (whole, rest) =
        text.split_once('.').map_or((&text[..], String::new()), |(whole, rest)| (whole, format!(".{rest}")));
    let (sign, whole) = whole.strip_prefix('-').map_or(("", whole), |whole| ("-", whole));
    let grouped: Vec<&str> = whole.as_bytes().rchunks(3).rev().map(|part| std::str::from_utf8(part).unwrap()).collect();
    format!("{sign}{}{rest}", grouped.join(","))
}

fn with_spread(spread: Spread, digits: usize) -> String {
    let number = |value| number(value, digits);
    format!("{} ({} to {})", number(spread.median), number(spread.min), number(spread.max))
}

/// A figure of a kind in a case.
type Of = (&'static str, Kind, &'static str);

enum Measure {
    /// The one by the other.
    Ratio(Of, Of),
    /// The one less the other.
    Difference(Of, Of),
    Figure(Of),
}

struct Target {
    what: &'static str,
    measure: Measure,
    /// None: to compare with.
    at_most: Option<f64>,
    digits: usize,
}

fn ratio(
    what: &'static str,
    figure: &'static str,
    (case, kind): (&'static str, Kind),
    to: Kind,
    at_most: f64,
) -> Target {
    Target {
        what,
        measure: Measure::Ratio((case, kind, figure), (case, to, figure)),
        at_most: Some(at_most),
        digits: 2,
    }
}

fn targets() -> Vec<Target> {
    use Kind::{
        Axum, AxumFloor, AxumFloorThreads, AxumThreads, Hyper, HyperFloor, Naive, Nchan, Raw, RawCoalescing, TakenOver,
    };
    const CPU: &str = "cpu_ns_per_delivery";
    const MEMORY: &str = "memory_per_connection";
    let one = ("1,000 listeners: one at a time", Axum);
    let fast = ("1,000 listeners: as fast as it goes", Axum);
    let batched = ("1,000 listeners: as fast as it goes, 16 events in a publish", Axum);
    let rate = ("1,000 listeners: fixed rate", Axum);
    let unicast = "10,000 users: one event in a publish";
    let idle = "10,000 listeners: connect";
    let (before, meanwhile) = ("resume: the others before", "resume: the others meanwhile");
    vec![
        ratio("CPU, one at a time, to axum floor", CPU, one, AxumFloor, 1.05),
        ratio("the same, both on several threads", CPU, (one.0, AxumThreads), AxumFloorThreads, 1.05),
        ratio("CPU, unicast with a request each, to axum floor", CPU, (unicast, Axum), AxumFloor, 1.12),
        ratio("the same, both on several threads", CPU, (unicast, AxumThreads), AxumFloorThreads, 1.12),
        ratio("CPU, one at a time, to naive", CPU, one, Naive, 0.80),
        ratio("CPU, one at a time, to nchan", CPU, one, Nchan, 0.95),
        ratio("CPU, as fast as it goes, to axum floor", CPU, fast, AxumFloor, 1.0),
        ratio("CPU, as fast as it goes, to coalescing raw", CPU, fast, RawCoalescing, 1.6),
        ratio("the same, 16 events in a publish", CPU, batched, RawCoalescing, 1.6),
        ratio("CPU, as fast as it goes, to naive", CPU, fast, Naive, 0.65),
        ratio("CPU, as fast as it goes, to nchan", CPU, fast, Nchan, 0.22),
        Target {
            what: "memory of an idle connection, more than axum floor, B",
            measure: Measure::Difference((idle, Axum, MEMORY), (idle, AxumFloor, MEMORY)),
            at_most: Some(400.0),
            digits: 0,
        },
        Target {
            what: "memory of an idle connection, more than hyper floor, B",
            measure: Measure::Difference((idle, Hyper, MEMORY), (idle, HyperFloor, MEMORY)),
            at_most: Some(400.0),
            digits: 0,
        },
        Target {
            what: "memory of an extra idle topic with one subscriber, B",
            measure: Measure::Difference(("10,000 topics: connect", Axum, MEMORY), (idle, Axum, MEMORY)),
            at_most: Some(400.0),
            digits: 0,
        },
        Target {
            what: "publish call, 10,000 listeners against 10",
            measure: Measure::Ratio(
                ("10,000 listeners: fixed rate", Axum, "publish_ns"),
                ("10 listeners: fixed rate", Axum, "publish_ns"),
            ),
            at_most: Some(1.5),
            digits: 2,
        },
        ratio("p50 at a fixed rate, to axum floor", "p50_ns", rate, AxumFloor, 1.05),
        ratio("p99 at a fixed rate, to axum floor", "p99_ns", rate, AxumFloor, 1.2),
        ratio("CPU of a connect, to axum floor", "cpu_ns_per_connect", (idle, Axum), AxumFloor, 1.10),
        Target {
            what: "p99 with 1 % stalled, against none",
            measure: Measure::Ratio(
                ("1,000 listeners: 1 % stalled", Axum, "p99_ns"),
                ("1,000 listeners: none stalled", Axum, "p99_ns"),
            ),
            at_most: Some(1.1),
            digits: 2,
        },
        Target {
            what: "p99 of the others while 5,000 resume, against before",
            measure: Measure::Ratio((meanwhile, Axum, "p99_ns"), (before, Axum, "p99_ns")),
            at_most: Some(2.0),
            digits: 2,
        },
        Target {
            what: "the same of axum floor",
            measure: Measure::Ratio((meanwhile, AxumFloor, "p99_ns"), (before, AxumFloor, "p99_ns")),
            at_most: None,
            digits: 2,
        },
        ratio("taken over: CPU, one at a time, to raw", CPU, (one.0, TakenOver), Raw, 1.25),
        ratio("taken over: CPU, as fast as it goes, to coalescing raw", CPU, (fast.0, TakenOver), RawCoalescing, 1.3),
        ratio("the same, 16 events in a publish", CPU, (batched.0, TakenOver), RawCoalescing, 1.3),
        Target {
            what: "taken over: memory of an idle connection, B",
            measure: Measure::Figure((idle, TakenOver, MEMORY)),
            at_most: Some(1_000.0),
            digits: 0,
        },
    ]
}

fn print_targets(rounds: &[Vec<Sample>]) {
    let mut is_first = true;
    for target in targets() {
        let of = |round: &[Sample], (case, kind, name): Of| figure(round, case, kind, name);
        let measured = over(rounds, |round| match target.measure {
            Measure::Ratio(of_this, to) => Some(of(round, of_this)? / of(round, to)?),
            Measure::Figure(of_this) => of(round, of_this),
            Measure::Difference(of_this, from) => Some(of(round, of_this)? - of(round, from)?),
        });
        // Of a case or a kind that was left out.
        let Some(measured) = measured else { continue };
        if std::mem::take(&mut is_first) {
            println!("\n**Targets**\n\n| figure | target | measured | |\n|---|---:|---:|---|");
        }
        let (at_most, met) = match target.at_most {
            None => (String::new(), ""),
            Some(at_most) => {
                let met = if measured.median <= at_most { "met" } else { "NOT MET" };
                (format!("<= {}", number(at_most, target.digits)), met)
            }
        };
        println!("| {} | {at_most} | {} | {met} |", target.what, with_spread(measured, target.digits));
    }
    println!();
}
