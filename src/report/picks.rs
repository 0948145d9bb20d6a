//! The page of one selection: scores, coverage, and where the picks lie.

use plotters::prelude::*;

use super::figure::{Chart, Failure, PALETTE, bounds, frame};
use super::html::{document, escape, html_table, inline};
use super::table::{MISSING, Table};
use crate::pick::{Map, Names, Pick};
use crate::{Error, Result};

/// What the page is made from.
pub struct Page<'a> {
    /// The method.
    pub method: &'a str,
    /// What its scores are; empty when it has none.
    pub score: &'a str,
    /// Short facts about the pool and the request.
    pub facts: &'a [String],
    /// The picks, in order.
    pub picks: &'a [Pick],
    /// Scores of all candidates, where the method has them.
    pub candidates: &'a [f32],
    /// Coverage radius after so many picks.
    pub radius: &'a [(usize, f32)],
    /// Where rows lie; without dots when there are no embeddings.
    pub map: &'a Map,
    /// Names of the rows.
    pub names: Option<&'a Names>,
}

/// Bars of the histogram.
const BARS: usize = 40;
/// Picks in the table.
const LISTED: usize = 200;

/// The selection as one self-contained page.
pub fn page(p: &Page) -> Result<String> {
    let facts: String = p.facts.iter().map(|f| format!("<li>{}</li>", escape(f))).collect();
    let mut body = format!(
        "<h1>What to label next: {} by {}</h1>\n<ul class=\"facts\">{facts}</ul>\n",
        p.picks.len(),
        escape(p.method)
    );
    let mut section = |title: &str, words: &str, content: String| {
        body += &format!("<h2>{title}</h2>\n<p class=\"soft\">{}</p>\n{content}", escape(words));
    };
    let scores: Vec<f32> = p.picks.iter().filter_map(|p| p.score).collect();
    if !scores.is_empty() {
        let all = if p.candidates.is_empty() { "" } else { " Grey: the same of all candidates." };
        let words = format!("Score: {}. Orange: which share of the picks has which score.{all}", p.score);
        section(
            "Scores",
            &words,
            figure("Histogram of the scores", |svg| histogram(svg, &scores, p.candidates, p.score))?,
        );
    }
    if p.radius.len() > 1 {
        let words = "The largest distance of any row of the pool to what is labelled or picked: how far the worst covered \
                     item is from its nearest label once so many picks are labelled.";
        section("Coverage radius", words, figure("Coverage radius against picks", |svg| curve(svg, p.radius))?);
    }
    if !p.map.pool.is_empty() {
        let [a, b] = p.map.share.map(|s| 100.0 * s);
        let words = format!(
            "The first two principal components of the embeddings; they hold {a:.1} % and {b:.1} % of the variance, so \
             near here need not be near there. At most 2,500 dots of each kind, evenly spaced."
        );
        let key = |color: &RGBColor, name: &str| {
            let color = format!("#{:02X}{:02X}{:02X}", color.0, color.1, color.2);
            format!(
                "<li><svg class=\"key\" viewBox=\"0 0 34 14\" aria-hidden=\"true\"><circle cx=\"17\" cy=\"7\" r=\"4\" fill=\"{color}\"/></svg>{name}</li>"
            )
        };
        let legend = [key(&POOL, "pool"), key(&PALETTE[0], "labelled"), key(&PALETTE[1], "picked")].concat();
        let map = figure("Pool, labelled and picked rows in two dimensions", |svg| scatter(svg, p.map))?;
        section(
            "Where they lie",
            &words,
            map.replace("</figure>", &format!("<ul class=\"legend\">{legend}</ul></figure>")),
        );
    }
    let words = match p.picks.len() > LISTED {
        true => format!("The first {LISTED} of {}; all are in the output file.", p.picks.len()),
        false => "Best first.".into(),
    };
    section("Picks", &words, html_table(&listed(p), &[]));
    Ok(document(&format!("{} picks by {}", p.picks.len(), p.method), &body))
}

fn listed(p: &Page) -> Table {
    let mut t = Table::new(["rank", "id", "name", "score", "distance", "nearest labelled"]);
    let number = |v: Option<f32>| v.map_or(MISSING.into(), |v| format!("{v:.5}"));
    for (at, pick) in p.picks.iter().take(LISTED).enumerate() {
        let (distance, nearest) = pick.nearest.unzip();
        t.rows.push(vec![
            (at + 1).to_string(),
            pick.id.to_string(),
            p.names.map_or(String::new(), |n| n.of(pick.id).to_string()),
            number(pick.score),
            number(distance),
            nearest.map_or(MISSING.into(), |n| n.to_string()),
        ]);
    }
    t
}

/// Dots and bars of what was not picked.
pub(super) const POOL: RGBColor = RGBColor(0xB4, 0xB4, 0xB0);

fn figure(label: &str, draw: impl Fn(&mut String) -> Result<(), Failure>) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg).map_err(|e| Error::Data { path: "report".into(), why: format!("{label} cannot be drawn: {e}") })?;
    Ok(format!("<figure class=\"card\">\n{}</figure>\n", inline(&svg, label)))
}

fn histogram(svg: &mut String, picks: &[f32], candidates: &[f32], score: &str) -> Result<(), Failure> {
    let root = SVGBackend::with_string(svg, (720, 340)).into_drawing_area();
    let (low, high) = bounds(picks.iter().chain(candidates).map(|v| f64::from(*v)), 0.0);
    let width = (high - low) / BARS as f64;
    let share = |of: &[f32]| {
        let mut bars = vec![0.0; BARS];
        for v in of {
            let at = ((f64::from(*v) - low) / width) as usize;
            bars[at.min(BARS - 1)] += 100.0 / of.len() as f64;
        }
        bars
    };
    let (all, some) = (share(candidates), share(picks));
    let top = all.iter().chain(&some).fold(0.0f64, |m, v| m.max(*v));
    let mut chart: Chart = frame(&root, (low, high), (0.0, 1.05 * top), (score, "share, %"))?;
    // Picks from the left of a bar's place, candidates to its right.
    for (bars, color, from, to) in [(all, POOL, 0.5, 0.95), (some, PALETTE[1], 0.05, 0.5)] {
        let bar = |(i, v): (usize, f64)| {
            let x = |share: f64| low + (i as f64 + share) * width;
            Rectangle::new([(x(from), 0.0), (x(to), v)], color.filled())
        };
        chart.draw_series(bars.into_iter().enumerate().filter(|b| b.1 > 0.0).map(bar))?;
    }
    drop(chart);
    root.present()?;
    Ok(())
}

fn curve(svg: &mut String, radius: &[(usize, f32)]) -> Result<(), Failure> {
    let root = SVGBackend::with_string(svg, (720, 340)).into_drawing_area();
    let points: Vec<(f64, f64)> = radius.iter().map(|(k, r)| (*k as f64, f64::from(*r))).collect();
    let x = bounds(points.iter().map(|p| p.0), 0.02);
    let y = bounds(points.iter().map(|p| p.1), 0.06);
    let mut chart: Chart = frame(&root, x, (y.0.max(0.0), y.1), ("picks", "coverage radius"))?;
    chart.draw_series(LineSeries::new(points.iter().copied(), PALETTE[0].stroke_width(2)))?;
    drop(chart);
    root.present()?;
    Ok(())
}

fn scatter(svg: &mut String, map: &Map) -> Result<(), Failure> {
    let root = SVGBackend::with_string(svg, (720, 620)).into_drawing_area();
    let all = || map.pool.iter().chain(&map.labelled).chain(&map.picked);
    let x = bounds(all().map(|p| f64::from(p[0])), 0.03);
    let y = bounds(all().map(|p| f64::from(p[1])), 0.03);
    let mut chart: Chart = frame(&root, x, y, ("first component", "second component"))?;
    for (dots, size, color) in [(&map.pool, 2, POOL), (&map.labelled, 3, PALETTE[0]), (&map.picked, 3, PALETTE[1])] {
        chart
            .draw_series(dots.iter().map(|p| Circle::new((f64::from(p[0]), f64::from(p[1])), size, color.filled())))?;
    }
    drop(chart);
    root.present()?;
    Ok(())
}
