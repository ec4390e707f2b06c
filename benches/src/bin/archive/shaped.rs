//! Over HTTP through a proxy that gives each connection a rate and each answer a latency: how a restore
//! grows with its workers, and how much memory it takes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use esker_bench::Result;
use esker_bench::arguments::Arguments;
use esker_bench::table::{Table, mebibytes};
use esker_tests::archive::proxy::{Action, Proxy, Shape as Limits};
use esker_tests::archive::s3::{ACCESS_KEY, BUCKET, S3, SECRET_KEY};
use plotters::prelude::*;

use crate::cell::{Outcome, Spec, Task, measure};
use crate::data::Shape;

const MIB: u64 = 1 << 20;

/// What is measured, and how narrow the line is.
pub struct Settings {
    mib: u64,
    workers: Vec<usize>,
    chunks: Vec<u64>,
    /// Budgets in MiB beside the default one, which is 0.
    buffers: Vec<u64>,
    rate: u64,
    latency: Duration,
    shapes: Vec<String>,
    plot: PathBuf,
}

impl Settings {
    pub fn parse(arguments: &Arguments) -> Result<Self> {
        Ok(Self {
            mib: arguments.get("mib", 4096)?,
            workers: arguments.list("workers", &[1, 2, 4, 8, 16, 24])?,
            chunks: arguments.list("chunks", &[32])?,
            buffers: arguments.list("buffers", &[0])?,
            rate: arguments.get("rate", 20)?,
            latency: Duration::from_millis(arguments.get("latency", 30)?),
            shapes: arguments.list("shapes", &Shape::ALL.map(|shape| shape.name().to_owned()))?,
            plot: arguments.get("plot", PathBuf::new())?,
        })
    }

    fn limits(&self) -> Limits {
        Limits {
            latency: self.latency,
            response_bytes_per_second: Some(self.rate * MIB),
            request_bytes_per_second: None,
        }
    }
}

/// The cells of one shape and chunk, by workers.
struct Series {
    name: String,
    points: Vec<(usize, Outcome)>,
}

pub fn run(parent: &Path, settings: &Settings) -> Result<()> {
    let mut table = Table::new(&[
        "files",
        "chunk",
        "workers",
        "MiB/s",
        "of workers x limit",
        "over one worker",
        "budget",
        "peak resident over the budget",
    ]);
    let mut all = Vec::new();
    for shape in Shape::ALL.into_iter().filter(|s| settings.shapes.iter().any(|n| n == s.name())) {
        let dir = tempfile::tempdir_in(parent)?;
        let made = shape.make(dir.path(), settings.mib << 20)?;
        let (server, prefix) = (S3::start(), shape.name());
        let direct = format!("http://{}", server.address());
        let task = Task::Push { checkpoint: made.checkpoint.clone() };
        let location = format!("s3://{BUCKET}/{prefix}");
        measure(&Spec { location: location.clone(), task }, &environment(&direct))?;
        std::fs::remove_dir_all(&made.checkpoint)?;
        let proxy = Proxy::start(server.address());
        proxy.shape(settings.limits());
        // s3s-fs reads 4 KiB at a time: at 170 MiB/s it would be the limit.
        let objects = server.objects();
        proxy.rule(move |request| {
            let path = request.target.split('?').next().unwrap_or_default();
            let key = path.strip_prefix(&format!("/{BUCKET}/"));
            let key = key.filter(|key| request.method == "GET" && key.contains("/files/"));
            key.map_or(Action::Pass, |key| Action::File(objects.join(key)))
        });
        let files = format!("{} ({})", made.files, mebibytes(made.bytes));
        for &chunk in &settings.chunks {
            for &buffer in &settings.buffers {
                let mut series =
                    Series { name: format!("{prefix}, {chunk} MiB"), points: Vec::new() };
                for &workers in &settings.workers {
                    let target = dir.path().join("restored");
                    let task = Task::Restore {
                        target: target.clone(),
                        workers,
                        chunk_bytes: chunk << 20,
                        buffer_bytes: (buffer > 0).then_some(buffer << 20),
                    };
                    let spec = Spec { location: location.clone(), task };
                    let outcome = measure(&spec, &environment(&proxy.url()))?;
                    std::fs::remove_dir_all(target)?;
                    series.points.push((workers, outcome));
                    let budget = if buffer > 0 {
                        buffer << 20
                    } else {
                        (2 * chunk).max(16) * MIB * workers as u64
                    };
                    table.row(row(&files, chunk, budget, &series, settings));
                    eprintln!("{}, {workers} workers: {outcome:?}", series.name);
                }
                all.push(series);
            }
        }
    }
    println!("{} MiB/s and {:?} for each connection\n\n{table}", settings.rate, settings.latency);
    if !settings.plot.as_os_str().is_empty() {
        plot(&settings.plot, &all, settings)?;
    }
    Ok(())
}

/// Of the newest point.
fn row(files: &str, chunk: u64, budget: u64, series: &Series, settings: &Settings) -> [String; 8] {
    let (workers, outcome) = series.points[series.points.len() - 1];
    let (fewest, first) = series.points[0];
    let rate = outcome.mib_per_second();
    let over_first = rate / first.mib_per_second() * fewest as f64;
    [
        files.to_owned(),
        format!("{chunk} MiB"),
        workers.to_string(),
        format!("{rate:.1}"),
        format!("{:.2}", rate / (workers as u64 * settings.rate) as f64),
        format!("{over_first:.1}"),
        mebibytes(budget),
        mebibytes(outcome.resident_peak.saturating_sub(budget)),
    ]
}

/// What an S3 client finds its server and credentials by.
fn environment(url: &str) -> Vec<(String, String)> {
    let variables = [
        ("AWS_ENDPOINT", url),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
    ];
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

/// Rates by workers, beside what the connections allow.
fn plot(path: &Path, all: &[Series], settings: &Settings) -> Result<()> {
    let workers_max = settings.workers.iter().copied().max().unwrap_or(1) as f64;
    let rate_max = workers_max * settings.rate as f64 * 1.1;
    let area = SVGBackend::new(path, (900, 560)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption("Restore, MiB/s by workers", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..workers_max, 0.0..rate_max)?;
    chart.configure_mesh().x_desc("workers").y_desc("MiB/s").draw()?;
    let limit = |workers: f64| (workers, workers * settings.rate as f64);
    chart
        .draw_series(LineSeries::new([0.0, workers_max].map(limit), BLACK.mix(0.4)))?
        .label("workers x limit")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLACK.mix(0.4)));
    for (number, series) in all.iter().enumerate() {
        let colour = Palette99::pick(number).to_rgba();
        let points: Vec<_> = series
            .points
            .iter()
            .map(|(w, outcome)| (*w as f64, outcome.mib_per_second()))
            .collect();
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
            .label(&series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}
