//! The output: a table for each case, and the targets.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::cases::Sample;
use crate::servers::Kind;
use crate::stats::Spread;

/// Returns the machine, the date and the commit of the run.
pub fn machine(cpus: usize, pinned: bool, has_nchan: bool) -> Value {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    json!({
        "cpu": model.map_or("unknown", |(_, model)| model),
        "cpus": cpus,
        "kernel": kernel.trim(),
        "date": output_of("date", &["-u", "+%Y-%m-%d"]),
        "commit": output_of("git", &["describe", "--always", "--dirty"]),
        "pinned": pinned,
        "nchan": has_nchan,
    })
}

fn output_of(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output.map_or_else(|_| "unknown".to_owned(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Returns a figure of one kind in one case, in one round.
fn figure(round: &[Sample], case: &str, kind: Kind, name: &str) -> Option<f64> {
    let mut of_case = round.iter().filter(|sample| sample.case == case && sample.kind == kind);
    of_case.find_map(|sample| sample.figures.iter().find(|figure| figure.0 == name).map(|figure| figure.1))
}

/// Returns the spread of a value over the rounds that have it.
fn over(rounds: &[Vec<Sample>], value: impl Fn(&[Sample]) -> Option<f64>) -> Option<Spread> {
    Spread::of(rounds.iter().filter_map(|round| value(round)).collect())
}

/// A column of a table.
struct Column {
    title: &'static str,
    figure: &'static str,
    /// The figure is divided by this.
    unit: f64,
    /// The number of decimal places.
    digits: usize,
}

const fn column(title: &'static str, figure: &'static str, unit: f64, digits: usize) -> Column {
    Column { title, figure, unit, digits }
}

const COLUMNS: &[Column] = &[
    column("Deliveries/s", "deliveries_per_s", 1.0, 0),
    column("CPU per delivery, us", "cpu_ns_per_delivery", 1e3, 2),
    column("p50, ms", "p50_ns", 1e6, 2),
    column("p99, ms", "p99_ns", 1e6, 2),
    column("Bytes per delivery", "bytes_per_delivery", 1.0, 0),
    column("Events per read", "deliveries_per_read", 1.0, 1),
    column("Publish call, us", "publish_ns", 1e3, 1),
    column("Connects/s", "connects_per_s", 1.0, 0),
    column("CPU per connect, us", "cpu_ns_per_connect", 1e3, 1),
    column("Resumes/s", "resumes_per_s", 1.0, 0),
    column("CPU per resume, us", "cpu_ns_per_resume", 1e3, 1),
    column("Memory per connection, B", "memory_per_connection", 1.0, 0),
    column("Peak memory per connection, B", "memory_at_most_per_connection", 1.0, 0),
    column("Events/s", "events_per_s", 1.0, 0),
    column("Delivered share", "deliveries_per_event_and_listener", 1.0, 3),
];

/// The figures of which ratios are printed: in each table, the first of these that it has.
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
        if machine["pinned"] == true { "server and load generator on separate CPUs" } else { "processes not pinned" }
    );
    if machine["nchan"] == false {
        println!("Not installed: nchan.");
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
                // A ratio across two runtimes would include the difference between the runtimes.
                let is_comparable = kind.has_threads() == reference.has_threads();
                is_comparable.then_some(figure(round, case, kind, main?)? / figure(round, case, *reference, main?)?)
            });
            ratio.map_or_else(String::new, |ratio| with_spread(ratio, 2))
        });
        println!("| {} | {} |", kind.name(), values.chain(ratios).collect::<Vec<_>>().join(" | "));
    }
}

/// Formats a number with commas between thousands.
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

/// A case, a kind and the name of a figure.
type Of = (&'static str, Kind, &'static str);

enum Measure {
    /// The first figure divided by the second.
    Ratio(Of, Of),
    /// The first figure minus the second.
    Difference(Of, Of),
    Figure(Of),
}

struct Target {
    title: &'static str,
    measure: Measure,
    /// The upper limit, or `None` for a figure that is only printed for comparison.
    at_most: Option<f64>,
    digits: usize,
}

fn ratio(
    title: &'static str,
    figure: &'static str,
    (case, kind): (&'static str, Kind),
    to: Kind,
    at_most: f64,
) -> Target {
    Target {
        title,
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
    let sequential = ("1,000 listeners: sequential", Axum);
    let pipelined = ("1,000 listeners: pipelined", Axum);
    let batched = ("1,000 listeners: pipelined, 16 events per publish", Axum);
    let rate = ("1,000 listeners: fixed rate", Axum);
    let unicast = "10,000 users: one event per publish";
    let idle = "10,000 listeners: connect";
    let (before, meanwhile) = ("resume: other clients before", "resume: other clients meanwhile");
    vec![
        ratio("CPU, sequential, to axum-floor", CPU, sequential, AxumFloor, 1.05),
        ratio(
            "CPU, sequential, axum-threads to axum-floor-threads",
            CPU,
            (sequential.0, AxumThreads),
            AxumFloorThreads,
            1.05,
        ),
        ratio("CPU, unicast, one request per event, to axum-floor", CPU, (unicast, Axum), AxumFloor, 1.12),
        ratio(
            "CPU, unicast, one request per event, axum-threads to axum-floor-threads",
            CPU,
            (unicast, AxumThreads),
            AxumFloorThreads,
            1.12,
        ),
        ratio("CPU, sequential, to naive", CPU, sequential, Naive, 0.80),
        ratio("CPU, sequential, to nchan", CPU, sequential, Nchan, 0.95),
        ratio("CPU, pipelined, to axum-floor", CPU, pipelined, AxumFloor, 1.0),
        ratio("CPU, pipelined, to raw-coalescing", CPU, pipelined, RawCoalescing, 1.6),
        ratio("CPU, pipelined, 16 events per publish, to raw-coalescing", CPU, batched, RawCoalescing, 1.6),
        ratio("CPU, pipelined, to naive", CPU, pipelined, Naive, 0.65),
        ratio("CPU, pipelined, to nchan", CPU, pipelined, Nchan, 0.22),
        Target {
            title: "memory per idle connection, axum above axum-floor, B",
            measure: Measure::Difference((idle, Axum, MEMORY), (idle, AxumFloor, MEMORY)),
            at_most: Some(400.0),
            digits: 0,
        },
        Target {
            title: "memory per idle connection, hyper above hyper-floor, B",
            measure: Measure::Difference((idle, Hyper, MEMORY), (idle, HyperFloor, MEMORY)),
            at_most: Some(400.0),
            digits: 0,
        },
        Target {
            title: "memory per additional idle topic with one subscriber, B",
            measure: Measure::Difference(("10,000 topics: connect", Axum, MEMORY), (idle, Axum, MEMORY)),
            at_most: Some(400.0),
            digits: 0,
        },
        Target {
            title: "publish call, 10,000 listeners to 10",
            measure: Measure::Ratio(
                ("10,000 listeners: fixed rate", Axum, "publish_ns"),
                ("10 listeners: fixed rate", Axum, "publish_ns"),
            ),
            at_most: Some(1.5),
            digits: 2,
        },
        ratio("p50, fixed rate, to axum-floor", "p50_ns", rate, AxumFloor, 1.05),
        ratio("p99, fixed rate, to axum-floor", "p99_ns", rate, AxumFloor, 1.2),
        ratio("CPU per connect, to axum-floor", "cpu_ns_per_connect", (idle, Axum), AxumFloor, 1.10),
        Target {
            title: "p99 with 1 % stalled clients, to p99 with none",
            measure: Measure::Ratio(
                ("1,000 listeners: 1 % stalled", Axum, "p99_ns"),
                ("1,000 listeners: none stalled", Axum, "p99_ns"),
            ),
            at_most: Some(1.1),
            digits: 2,
        },
        Target {
            title: "p99 of other clients while 5,000 resume, to their p99 before",
            measure: Measure::Ratio((meanwhile, Axum, "p99_ns"), (before, Axum, "p99_ns")),
            at_most: Some(2.0),
            digits: 2,
        },
        Target {
            title: "axum-floor: p99 of other clients while 5,000 resume, to their p99 before",
            measure: Measure::Ratio((meanwhile, AxumFloor, "p99_ns"), (before, AxumFloor, "p99_ns")),
            at_most: None,
            digits: 2,
        },
        ratio("takeover: CPU, sequential, to raw", CPU, (sequential.0, TakenOver), Raw, 1.25),
        ratio("takeover: CPU, pipelined, to raw-coalescing", CPU, (pipelined.0, TakenOver), RawCoalescing, 1.3),
        ratio(
            "takeover: CPU, pipelined, 16 events per publish, to raw-coalescing",
            CPU,
            (batched.0, TakenOver),
            RawCoalescing,
            1.3,
        ),
        Target {
            title: "takeover: memory per idle connection, B",
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
            Measure::Ratio(first, second) => Some(of(round, first)? / of(round, second)?),
            Measure::Figure(figure) => of(round, figure),
            Measure::Difference(first, second) => Some(of(round, first)? - of(round, second)?),
        });
        // A case or a kind of this target did not run.
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
        println!("| {} | {at_most} | {} | {met} |", target.title, with_spread(measured, target.digits));
    }
    println!();
}
