//! The results: for people as tables, for programs as `vireo.bench/1`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::thread::available_parallelism;

use anyhow::Context as _;
use serde::Serialize;

use crate::bench::{Bench, Pair};
use crate::contest::Counts;
use crate::table::Table;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: &'static str,
    /// A smoke run: the figures say little.
    quick: bool,
    rounds: usize,
    machine: Machine,
    pair: Pair,
    sections: Vec<Section>,
}

/// Where it was measured.
#[derive(Debug, Serialize)]
struct Machine {
    cpus: usize,
    cpu: String,
    memory_bytes: u64,
    kernel: String,
}

/// One task and all who did it.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    pub(crate) name: &'static str,
    /// What was measured, under which conditions.
    pub(crate) about: String,
    pub(crate) rows: Vec<Row>,
    /// Contestants that a quick run leaves out.
    pub(crate) left_out: Vec<String>,
}

/// One contestant.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) ours: bool,
    pub(crate) seconds: Spread,
    /// Its median time over that of the section's first row of ours.
    pub(crate) times_ours: f64,
    /// Median.
    pub(crate) cpu_seconds: Option<f64>,
    /// Largest.
    pub(crate) peak_bytes: Option<u64>,
    pub(crate) counts: Counts,
    /// Work per second, at the median, and the unit of work.
    pub(crate) rate: Option<(f64, &'static str)>,
}

/// Some measurements of the same thing.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) min: f64,
    pub(crate) median: f64,
    pub(crate) all: Vec<f64>,
}

impl Spread {
    /// Of these; zero if there are none. An even number of them has its lower middle as median.
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Self {
        let all: Vec<f64> = values.collect();
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
        Self { min: at(0), median: at(sorted.len().saturating_sub(1) / 2), all }
    }
}

impl Report {
    pub(crate) fn new(bench: &Bench, sections: Vec<Section>) -> anyhow::Result<Self> {
        Ok(Self {
            schema: "vireo.bench/1",
            quick: bench.quick,
            rounds: bench.rounds,
            machine: Machine::this()?,
            pair: bench.pair.clone(),
            sections,
        })
    }

    pub(crate) fn to_text(&self) -> String {
        self.render(Table::to_text, |title| format!("{title}\n{}", "-".repeat(title.len())))
    }

    pub(crate) fn to_markdown(&self) -> String {
        self.render(Table::to_markdown, |title| format!("### {title}\n"))
    }

    fn render(&self, table: fn(&Table) -> String, heading: fn(&str) -> String) -> String {
        let mut parts = vec![self.conditions()];
        for section in &self.sections {
            let left_out = match section.left_out.as_slice() {
                [] => String::new(),
                names => format!("\nLeft out of this quick run: {}.\n", names.join("; ")),
            };
            let shown = table(&section.table());
            parts.push(format!(
                "{}\n{}\n\n{shown}{left_out}",
                heading(section.name),
                section.about
            ));
        }
        parts.join("\n\n")
    }

    fn conditions(&self) -> String {
        let Machine { cpus, cpu, memory_bytes, kernel } = &self.machine;
        let Pair {
            image_bytes,
            image_used_bytes,
            paths,
            added,
            modified,
            removed,
            metadata,
            changed_bytes,
            ..
        } = &self.pair;
        let quick = if self.quick {
            " A quick run: it shows that everything works, not how fast it is."
        } else {
            ""
        };
        format!(
            "{cpus} x {cpu}, {}, Linux {kernel}. {} rounds in which the contestants took turns; images and trees in the \
             page cache.{quick}\nThe pair: a Debian 12 web server's image of {} ({} in use, {paths} paths) and a copy after \
             an apt upgrade of the libraries that the server maps, a change of its configuration and new pages: {modified} \
             paths modified, {added} added, {removed} removed, {metadata} with metadata only; {} in changed files.",
            bytes(*memory_bytes),
            self.rounds,
            bytes(*image_bytes),
            bytes(*image_used_bytes),
            bytes(*changed_bytes),
        )
    }
}

impl Section {
    fn table(&self) -> Table {
        let any = |has: fn(&Row) -> bool| self.rows.iter().any(has);
        let used = any(|row| row.used());
        let rated = any(|row| row.rate.is_some());
        let mut counts: Vec<&str> =
            self.rows.iter().flat_map(|row| row.counts.keys().copied()).collect();
        counts.sort_unstable();
        counts.dedup();
        let mut head =
            vec!["".to_owned(), "seconds, min / median".to_owned(), "times ours".to_owned()];
        head.extend(rated.then(|| "rate".to_owned()));
        head.extend(used.then(|| "CPU s".to_owned()));
        head.extend(used.then(|| "peak memory".to_owned()));
        for name in &counts {
            head.push(name.trim_end_matches("_bytes").replace('_', " "));
            // Bytes are compared too: fewer is what this is about.
            head.extend(name.ends_with("_bytes").then(|| "times ours".to_owned()));
        }
        let mut table = Table::new(head);
        let ours = self.rows.iter().find(|row| row.ours);
        for row in &self.rows {
            let mut cells = vec![row.name.clone(), row.seconds.show(), times(row.times_ours)];
            cells.extend(
                rated.then(|| row.rate.map_or(String::new(), |(rate, unit)| show_rate(rate, unit))),
            );
            cells.extend(
                used.then(|| row.cpu_seconds.map_or(String::new(), |cpu| format!("{cpu:.2}"))),
            );
            cells.extend(used.then(|| row.peak_bytes.map_or(String::new(), bytes)));
            for name in &counts {
                let of = |row: &Row| row.counts.get(name).copied();
                let is_bytes = name.ends_with("_bytes");
                let show = |count: u64| if is_bytes { bytes(count) } else { count.to_string() };
                cells.push(of(row).map_or(String::new(), show));
                if is_bytes {
                    let ratio = of(row)
                        .zip(ours.and_then(of))
                        .map(|(its, ours)| its as f64 / ours.max(1) as f64);
                    cells.push(ratio.map_or(String::new(), times));
                }
            }
            table.push(cells, row.ours);
        }
        table
    }
}

impl Row {
    fn used(&self) -> bool {
        self.cpu_seconds.is_some()
    }
}

impl Spread {
    fn show(&self) -> String {
        let digits = if self.median < 1.0 { 3 } else { 2 };
        format!("{:.digits$} / {:.digits$}", self.min, self.median)
    }
}

impl Machine {
    fn this() -> anyhow::Result<Self> {
        let read =
            |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let find = |text: &str, key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            line.map(|rest| rest.trim_start_matches([' ', '\t', ':']).trim().to_owned())
                .unwrap_or_default()
        };
        let memory = find(&read("/proc/meminfo")?, "MemTotal");
        let kib: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        Ok(Self {
            cpus: available_parallelism().map_or(1, usize::from),
            cpu: find(&read("/proc/cpuinfo")?, "model name"),
            memory_bytes: kib << 10,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        })
    }
}

/// Bytes as people read them.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = UNITS.iter().find(|(size, _)| count >= *size);
    unit.map_or_else(
        || format!("{count} B"),
        |(size, name)| format!("{:.2} {name}", count as f64 / *size as f64),
    )
}

/// Bytes that the file `path` occupies.
pub(crate) fn occupied(path: &std::path::Path) -> anyhow::Result<u64> {
    let found = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(found.blocks() * 512)
}

fn times(ratio: f64) -> String {
    if ratio >= 10.0 { format!("{ratio:.0}x") } else { format!("{ratio:.2}x") }
}

fn show_rate(rate: f64, unit: &str) -> String {
    match unit {
        "B" => format!("{:.2} GB/s", rate / 1e9),
        _ => format!("{:.0} {unit}/s", rate),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_least_and_its_middle() {
        let spread = Spread::of([3.0, 1.0, 2.0].into_iter());
        assert_eq!((spread.min, spread.median), (1.0, 2.0));
        let spread = Spread::of([4.0, 3.0].into_iter());
        assert_eq!((spread.min, spread.median), (3.0, 3.0));
        assert_eq!(Spread::of([].into_iter()).median, 0.0);
    }

    #[test]
    fn bytes_are_shown_in_the_largest_unit_that_fits() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(bytes(1 << 30), "1.00 GiB");
    }

    #[test]
    fn bytes_and_times_are_compared_with_ours() {
        let row = |name: &str, ours, median: f64, wire| Row {
            name: name.to_owned(),
            ours,
            seconds: Spread::of([median].into_iter()),
            times_ours: median / 2.0,
            cpu_seconds: None,
            peak_bytes: None,
            counts: [("wire_bytes", wire)].into(),
            rate: None,
        };
        let rows = vec![row("vireo", true, 2.0, 1 << 20), row("other", false, 5.0, 3 << 19)];
        let section = Section { name: "s", about: String::new(), rows, left_out: Vec::new() };
        let text = section.table().to_markdown();
        assert!(text.contains("| other | 5.00 / 5.00 | 2.50x | 1.50 MiB | 1.50x |"), "{text}");
    }
}
