//! Charts, as SVG: a bar chart for each group of workloads, and the writes of a timeline.
//!
//! The texts are `<text>` elements: no fonts are needed here, only where they are looked at.

use std::collections::BTreeMap;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Result;
use crate::compare::report::{BASE, Spread, Summary, number};
use crate::compare::run::Cell;
use crate::compare::workloads::WORKLOADS;

const HEIGHT: u32 = 520;
/// Width of one bar, and of the frame around all of them.
const BAR_WIDTH: u32 = 34;
const FRAME_WIDTH: u32 = 220;
const TIMELINE_WIDTH: u32 = 1200;
const COLOURS: [RGBColor; 7] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(127, 127, 127),
];

/// Named values that are charted: the tail is where engines differ.
const DETAILS: [&str; 8] = [
    "p50 µs",
    "p99 µs",
    "p99.9 µs",
    "p99.99 µs",
    "max µs",
    "freeze max µs",
    "without p99.9 µs",
    "without max µs",
];
/// A logarithm must not be taken of nothing.
const OVER_MIN: f64 = 1e-6;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A bar: a spread over the median of the engine that the others are compared with.
struct Bar<'a> {
    engine: &'a str,
    value: Spread,
    over_base: Spread,
}

/// Bars of one workload and number of threads.
struct Cluster<'a> {
    title: String,
    unit: &'a str,
    bars: Vec<Bar<'a>>,
}

/// One chart for each group of workloads that was measured.
///
/// # Errors
///
/// When a file cannot be written.
pub fn bars(dir: &Path, summaries: &[Summary]) -> Result<()> {
    let group_of = |summary: &Summary| {
        let workload = WORKLOADS.iter().find(|workload| workload.name == summary.workload);
        workload.map_or("others", |workload| workload.group)
    };
    let mut groups: BTreeMap<&str, Vec<&Summary>> = BTreeMap::new();
    for summary in summaries {
        groups.entry(group_of(summary)).or_default().push(summary);
    }
    for (name, group) in groups {
        let all: Vec<Cluster<'_>> = same(&group).flat_map(of_values).collect();
        chart(&dir.join(format!("{name}.svg")), name, &all)?;
        let all: Vec<Cluster<'_>> = same(&group).flat_map(of_named).collect();
        chart(&dir.join(format!("{name}-details.svg")), &format!("{name}, details"), &all)?;
    }
    Ok(())
}

/// Summaries that belong beside each other.
fn same<'a, 'b>(summaries: &'b [&'a Summary]) -> impl Iterator<Item = &'b [&'a Summary]> {
    summaries.chunk_by(|a, b| (&a.workload, a.threads) == (&b.workload, b.threads))
}

/// What the workload counts.
fn of_values<'a>(same: &[&'a Summary]) -> Option<Cluster<'a>> {
    let values = same.iter().filter_map(|summary| Some((summary.engine.as_str(), summary.value?)));
    let Summary { workload, threads, unit, .. } = same[0];
    cluster(format!("{workload} x{threads}"), unit, values.collect())
}

/// Latencies, and what copies took.
fn of_named<'a>(same: &[&'a Summary]) -> Vec<Cluster<'a>> {
    let is_shown = |name: &str| {
        DETAILS.contains(&name) || name.ends_with("checkpoint p50 ms") || name.ends_with("MiB/s")
    };
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in same.iter().flat_map(|summary| &summary.more) {
        if is_shown(name) && !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let clusters = names.into_iter().filter_map(|name| {
        let values = same.iter().filter_map(|summary| {
            let (_, spread) = summary.more.iter().find(|(other, _)| other == name)?;
            Some((summary.engine.as_str(), *spread))
        });
        let Summary { workload, threads, .. } = same[0];
        cluster(format!("{workload} x{threads}"), name, values.collect())
    });
    clusters.collect()
}

fn cluster<'a>(
    title: String,
    unit: &'a str,
    values: Vec<(&'a str, Spread)>,
) -> Option<Cluster<'a>> {
    let base = values.iter().find(|(engine, _)| *engine == BASE).or(values.first())?.1;
    let over = |value: f64| (value / base.median).max(OVER_MIN);
    let bars = values.into_iter().map(|(engine, value)| {
        let Spread { median, min, max } = value;
        let over_base = Spread { median: over(median), min: over(min), max: over(max) };
        Bar { engine, value, over_base }
    });
    Some(Cluster { title, unit, bars: bars.collect() })
}

/// Every engine keeps its colour from chart to chart.
fn colour(engine: &str) -> RGBColor {
    const NAMES: [&str; 7] = ["esker", "fjall", "rocksdb", "redb", "sled", "sqlite", "lmdb"];
    COLOURS[NAMES.iter().position(|name| *name == engine).unwrap_or(0)]
}

fn chart(path: &Path, name: &str, clusters: &[Cluster<'_>]) -> Result<()> {
    if clusters.is_empty() {
        return Ok(());
    }
    // A cluster of one bar still has a title under it.
    let slots: f64 = clusters.iter().map(Cluster::slots).sum();
    let width = FRAME_WIDTH + (f64::from(BAR_WIDTH) * slots) as u32;
    let root = SVGBackend::new(path, (width.max(560), HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let ratios = clusters.iter().flat_map(|cluster| &cluster.bars).map(|bar| bar.over_base);
    let (low, high) = ratios
        .fold((0.8_f64, 1.25_f64), |(low, high), ratio| (low.min(ratio.min), high.max(ratio.max)));
    let (low, high) = (low / 1.3, high * 1.6);
    let caption = format!("{name}: over {BASE}, medians with min and max, log scale");
    let mut chart = ChartBuilder::on(&root)
        .caption(caption, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(70)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..slots, (low..high).log_scale())?;
    // plotters' own labels of a logarithmic axis leave out what is below 1.
    for ratio in ticks(low, high) {
        let weight = if ratio == 1.0 { 0.9 } else { 0.2 };
        let line = PathElement::new([(0.0, ratio), (slots, ratio)], BLACK.mix(weight));
        chart.draw_series([line])?;
        let (px, py) = chart.backend_coord(&(0.0, ratio));
        text(&root, &format!("{ratio}"), (px - 22, py - 5), 11)?;
    }
    let mut at = 0.0;
    for cluster in clusters {
        let mut x = at + (cluster.slots() - cluster.bars.len() as f64) / 2.0;
        for bar in &cluster.bars {
            let (middle, Spread { median, min, max }) = (x + 0.5, bar.over_base);
            let colour = colour(bar.engine);
            let body = Rectangle::new([(x + 0.1, 1.0), (x + 0.9, median)], colour.filled());
            chart.draw_series([body])?;
            let end = [(x + 0.1, median), (x + 0.9, median)];
            let range = [(middle, min), (middle, max)];
            chart.draw_series([PathElement::new(end, colour.stroke_width(3))])?;
            chart.draw_series([PathElement::new(range, BLACK.stroke_width(1))])?;
            let (px, py) = chart.backend_coord(&(middle, max.max(1.0)));
            text(&root, &number(bar.value.median), (px, py - 15), 10)?;
            x += 1.0;
        }
        let (px, py) = chart.backend_coord(&(at + cluster.slots() / 2.0, low));
        text(&root, &cluster.title, (px, py + 8), 12)?;
        text(&root, cluster.unit, (px, py + 24), 10)?;
        at += cluster.slots();
    }
    legend(&root, clusters)?;
    Ok(root.present()?)
}

impl Cluster<'_> {
    /// Its width in bars, room for its title included.
    fn slots(&self) -> f64 {
        (self.bars.len() as f64 + 1.0).max(4.0)
    }
}

/// 1, 2 and 5 times the powers of ten between two ends.
fn ticks(low: f64, high: f64) -> impl Iterator<Item = f64> {
    let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let ticks = powers.flat_map(|power| {
        // Divided where it is small: 0.2, not 0.2000…1.
        let (up, down) = (10_f64.powi(power.max(0)), 10_f64.powi(-power.min(0)));
        [1.0, 2.0, 5.0].map(|digit| digit * up / down)
    });
    ticks.filter(move |tick| (low..high).contains(tick))
}

fn text(root: &Area<'_>, words: &str, at: (i32, i32), size: i32) -> Result<()> {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    let style = ("sans-serif", size).into_text_style(root).pos(Pos::new(HPos::Center, VPos::Top));
    Ok(root.draw(&Text::new(words.to_owned(), at, style))?)
}

fn legend(root: &Area<'_>, clusters: &[Cluster<'_>]) -> Result<()> {
    let mut engines: Vec<&str> = Vec::new();
    for bar in clusters.iter().flat_map(|cluster| &cluster.bars) {
        if !engines.contains(&bar.engine) {
            engines.push(bar.engine);
        }
    }
    let y = HEIGHT as i32 - 24;
    for (number, engine) in engines.iter().enumerate() {
        let x = 70 + 75 * number as i32;
        root.draw(&Rectangle::new([(x, y), (x + 10, y + 10)], colour(engine).filled()))?;
        let style = ("sans-serif", 12).into_text_style(root);
        root.draw(&Text::new((*engine).to_owned(), (x + 14, y), style))?;
    }
    Ok(())
}

/// One chart for each timeline that was measured, of its first round.
///
/// # Errors
///
/// When a file cannot be written.
pub fn timelines(dir: &Path, cells: &[Cell]) -> Result<()> {
    for cell in cells.iter().filter(|cell| cell.round == 0) {
        let Some(outcome) = &cell.outcome else { continue };
        if outcome.timeline.is_empty() {
            continue;
        }
        let name = format!("{}-{}-{}threads.svg", cell.workload, cell.engine, cell.threads);
        let title = format!(
            "{}, {} threads: slowest write of each 10 ms; grey: checkpoints",
            cell.engine, cell.threads
        );
        timeline(
            &dir.join(name),
            &title,
            colour(&cell.engine),
            &outcome.timeline,
            &outcome.copies,
        )?;
    }
    Ok(())
}

fn timeline(
    path: &Path,
    title: &str,
    colour: RGBColor,
    points: &[(f64, f64)],
    copies: &[(f64, f64)],
) -> Result<()> {
    let root = SVGBackend::new(path, (TIMELINE_WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE)?;
    let end = points.iter().map(|point| point.0).chain(copies.iter().map(|copy| copy.1));
    let end = end.fold(0.1, f64::max);
    let slowest = points.iter().map(|point| point.1).fold(1e3, f64::max);
    let range = 1.0..slowest * 2.0;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 16))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(70)
        .build_cartesian_2d(0.0..end, range.clone().log_scale())?;
    chart.draw_series(copies.iter().map(|&(from, to)| {
        // Wide enough to be seen.
        let to = to.max(from + end / f64::from(TIMELINE_WIDTH));
        Rectangle::new([(from, range.start), (to, range.end)], BLACK.mix(0.15).filled())
    }))?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .x_desc("s")
        .y_desc("µs")
        .y_label_formatter(&|micros| number(*micros))
        .draw()?;
    // A bucket without a write is a part of a longer one that ended later.
    let seen = points.iter().copied().filter(|point| point.1 > 0.0);
    chart.draw_series(seen.map(|point| Circle::new(point, 2, colour.filled())))?;
    Ok(root.present()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_lie_between_the_ends() {
        let found: Vec<f64> = ticks(0.15, 12.0).collect();
        assert_eq!(found, [0.2, 0.5, 1.0, 2.0, 5.0, 10.0]);
    }
}
