//! What a delivery costs, against the floors: `cargo run --release -p floors`. See `docs/performance.md`.
//!
//! It starts each server in a process of its own, opens thousands of connections to it, verifies what comes, and prints
//! tables. After `--`: `--smoke`, `--quick`, `--rounds N`, `--case NAME`, `--kind NAME`, `--json FILE`.

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

/// What is asked for after `--`.
struct Arguments {
    smoke: bool,
    rounds: usize,
    case: Option<String>,
    kind: Option<Kind>,
    json: Option<String>,
}

impl Arguments {
    /// None: nothing is to be done.
    fn parse(arguments: &[String]) -> Option<Self> {
        let has = |name: &str| arguments.iter().any(|argument| argument == name);
        let value = |name: &str| {
            let place = arguments.iter().position(|argument| argument == name)?;
            Some(arguments.get(place + 1).unwrap_or_else(|| panic!("{name} of what?")).clone())
        };
        // `cargo test` runs this program too, only to see that it runs. A list of tests, or the name of a test, is
        // not meant for this program.
        let is_asked_for_others = |argument: &String| argument == "--list" || !argument.starts_with('-');
        if cfg!(test) && arguments.iter().any(is_asked_for_others) {
            return None;
        }
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
            rounds: value("--rounds").map_or(rounds, |rounds| rounds.parse().expect("a number of rounds")),
            case: value("--case"),
            kind: value("--kind").map(|name| Kind::named(&name).unwrap_or_else(|| panic!("{name} is no kind"))),
            json: value("--json"),
        })
    }

    fn cases(&self) -> Vec<&'static Case> {
        let cases: Vec<_> =
            CASES.iter().filter(|case| self.case.as_ref().is_none_or(|name| name == case.name)).collect();
        let names = || CASES.iter().map(|case| case.name).collect::<Vec<_>>().join(", ");
        assert!(!cases.is_empty(), "the cases are {}", names());
        cases
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [serve, kind, options @ ..] = &arguments[..]
        && serve == "--serve"
    {
        servers::serve(Kind::named(kind).expect("a kind"), Options::parse(options));
        return ExitCode::SUCCESS;
    }
    let Some(arguments) = Arguments::parse(&arguments) else { return ExitCode::SUCCESS };
    load::check_itself();
    let begun = Instant::now();
    // This one has only one CPU from here on.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let pinned = process::pin(cpus);
    let has_nchan = nchan::is_there();
    if !has_nchan {
        skip::not_installed("nchan (Debian's libnginx-mod-nchan)");
    }
    if !pinned {
        skip::skipped("server and load share a CPU, because there is only one, or no taskset");
    }
    let scale = if arguments.smoke { Scale::SMOKE } else { Scale::FULL };
    let mut json = arguments.json.as_ref().map(|path| File::create(path).expect("the file for the figures"));
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
            // Who is first is another one in each round.
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
        println!("Nothing was lost, doubled or out of order.");
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

/// A sample as a line of JSON.
fn line(round: usize, sample: &Sample) -> serde_json::Value {
    let figures: serde_json::Map<String, serde_json::Value> =
        sample.figures.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
    serde_json::json!({ "round": round, "case": sample.case, "kind": sample.kind.name(), "figures": figures })
}
