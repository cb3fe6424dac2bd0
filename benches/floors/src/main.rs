//! Compares the cost of a delivery with minimal event streams, the *floors*, and with other
//! servers: `cargo run --release -p floors`. `docs/performance.md` has the results.
//!
//! The benchmark starts each server in a separate process, opens thousands of connections, verifies
//! all events, and prints tables. Options follow `--`: `--smoke`, `--quick`, `--rounds N`,
//! `--case NAME`, `--kind NAME`, `--json FILE`.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a benchmark"
)]

mod cases;
mod load;
mod parse;
mod process;
mod publisher;
mod servers;
#[path = "../../../tests/kit/skip.rs"]
mod skip;
mod stats;
mod table;

use std::fs::File;
use std::io::Write;
use std::process::ExitCode;
use std::time::Instant;

use cases::{CASES, Case, Run, Sample, Scale};
use servers::{Kind, Options, nchan};

/// The options after `--`.
struct Arguments {
    smoke: bool,
    rounds: usize,
    case: Option<String>,
    kind: Option<Kind>,
    json: Option<String>,
}

impl Arguments {
    /// Parses the arguments. Returns `None` if `cargo test` runs this program for a list of tests,
    /// or for a test by name.
    fn parse(arguments: &[String]) -> Option<Self> {
        let has = |name: &str| arguments.iter().any(|argument| argument == name);
        let value = |name: &str| {
            let place = arguments.iter().position(|argument| argument == name)?;
            Some(arguments.get(place + 1).unwrap_or_else(|| panic!("{name} has no value")).clone())
        };
        let selects_tests = |argument: &String| argument == "--list" || !argument.starts_with('-');
        if cfg!(test) && arguments.iter().any(selects_tests) {
            return None;
        }
        // `cargo test` runs this program too, only to check that it works.
        let smoke = cfg!(test) || has("--smoke");
        let rounds = if smoke {
            1
        } else if has("--quick") {
            2
        } else {
            5
        };
        Some(Self {
            smoke,
            rounds: value("--rounds").map_or(rounds, |rounds| rounds.parse().expect("--rounds has no number")),
            case: value("--case"),
            kind: value("--kind").map(|name| Kind::named(&name).unwrap_or_else(|| panic!("unknown kind: {name}"))),
            json: value("--json"),
        })
    }

    fn cases(&self) -> Vec<&'static Case> {
        let cases: Vec<_> =
            CASES.iter().filter(|case| self.case.as_ref().is_none_or(|name| name == case.name)).collect();
        let names = || CASES.iter().map(|case| case.name).collect::<Vec<_>>().join(", ");
        assert!(!cases.is_empty(), "unknown case; the cases are {}", names());
        cases
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [serve, kind, options @ ..] = &arguments[..]
        && serve == "--serve"
    {
        servers::serve(Kind::named(kind).expect("unknown kind"), Options::parse(options));
        return ExitCode::SUCCESS;
    }
    let Some(arguments) = Arguments::parse(&arguments) else { return ExitCode::SUCCESS };
    load::self_check();
    let begun = Instant::now();
    // Counted before `pin` leaves only one CPU to this process.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let pinned = process::pin(cpus);
    let has_nchan = nchan::is_installed();
    if !has_nchan {
        skip::not_installed("nchan (Debian's libnginx-mod-nchan)");
    }
    if !pinned {
        skip::skipped("a CPU each for server and load generator: the machine has one CPU, or no taskset");
    }
    let scale = if arguments.smoke { Scale::SMOKE } else { Scale::FULL };
    let mut json =
        arguments.json.as_ref().map(|path| File::create(path).expect("cannot create the file for the figures"));
    let machine = table::machine(cpus, pinned, has_nchan);
    if let Some(json) = &mut json {
        writeln!(json, "{machine}").unwrap();
    }
    let (mut rounds, mut problems, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..arguments.rounds {
        let mut samples = Vec::new();
        for case in arguments.cases() {
            let mut kinds: Vec<Kind> = case.kinds.to_vec();
            kinds.retain(|kind| has_nchan || *kind != Kind::Nchan);
            kinds.retain(|kind| arguments.kind.is_none_or(|only| only == *kind));
            // Another kind is first in each round, so that no kind profits from its place.
            let first = round % kinds.len().max(1);
            kinds.rotate_left(first);
            for kind in kinds {
                let run = run(case, kind, scale, pinned);
                if let Some(json) = &mut json {
                    run.samples.iter().for_each(|sample| writeln!(json, "{}", line(round, sample)).unwrap());
                }
                run.problems.iter().for_each(|problem| eprintln!("FAILED: {problem}"));
                samples.extend(run.samples);
                problems.extend(run.problems);
                warnings.extend(run.warnings);
            }
        }
        rounds.push(samples);
        if !arguments.smoke {
            eprintln!("round {} of {}: {:.0} s", round + 1, arguments.rounds, begun.elapsed().as_secs_f64());
        }
    }
    if !arguments.smoke {
        table::print(&machine, &rounds);
        warnings.sort_unstable();
        warnings.iter().for_each(|warning| println!("Note: {warning}."));
        println!("\n{} rounds in {:.0} s.", arguments.rounds, begun.elapsed().as_secs_f64());
    }
    if problems.is_empty() {
        println!("No event was lost, duplicated or out of order.");
        return ExitCode::SUCCESS;
    }
    problems.iter().for_each(|problem| println!("FAILED: {problem}"));
    ExitCode::FAILURE
}

fn run(case: &Case, kind: Kind, scale: Scale, pinned: bool) -> Run {
    let mut run = Run { kind, scale, pinned, samples: Vec::new(), problems: Vec::new(), warnings: Vec::new() };
    (case.run)(&mut run);
    run
}

/// Returns a sample as a line of JSON.
fn line(round: usize, sample: &Sample) -> serde_json::Value {
    let figures: serde_json::Map<String, serde_json::Value> =
        sample.figures.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    serde_json::json!({ "round": round, "case": sample.case, "kind": sample.kind.name(), "figures": figures })
}
