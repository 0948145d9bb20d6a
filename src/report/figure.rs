//! Accuracy against budget as SVG: a mean line for each method, a band of one standard error around it.

use crate::bench::epochs::EpochRecord;
use crate::error::{Error, Result};
use crate::report::{REFERENCE, Results};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// Where the figure goes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A file of its own: white ground, legend at the right.
    File,
    /// Part of a page, which colours it for light and dark and brings its own legend.
    Inline,
}

/// Text and axes; the page replaces it in dark mode.
pub const INK: RGBColor = RGBColor(0x22, 0x22, 0x22);
/// Grid lines.
pub const GRID: RGBColor = RGBColor(0xE4, 0xE4, 0xE4);
/// Okabe and Ito's colours, which colour-blind readers can tell apart, without black and the yellow that white
/// swallows.
pub const PALETTE: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
];

/// How a method is drawn: colour, dash and marker all differ, so that one of them is enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    /// The colour.
    pub color: RGBColor,
    /// Length of dashes and gaps; none for a solid line.
    pub dash: Option<(u32, u32)>,
    /// 0 circle, 1 square, 2 triangle, 3 diamond.
    pub marker: usize,
}

/// The looks of the rows, in their order. Random is the ink's colour, dashed.
pub fn looks(results: &Results) -> Vec<Look> {
    let mut next = 0;
    let look = |id: &str| {
        if id == REFERENCE {
            return Look { color: INK, dash: Some((6, 4)), marker: 0 };
        }
        let i = next;
        next += 1;
        let dash = [None, Some((2, 3)), Some((9, 3))][(i / PALETTE.len()) % 3];
        Look { color: PALETTE[i % PALETTE.len()], dash, marker: (i + 1) % 4 }
    };
    results.rows.iter().map(|r| r.id.as_str()).map(look).collect()
}

/// Draw accuracy (%) against labelled share of the pool (%).
pub fn accuracy(results: &Results, form: Form) -> Result<String> {
    let mut svg = String::new();
    draw(results, form, &mut svg)
        .map_err(|e| Error::Data { path: "accuracy.svg".into(), why: format!("the figure cannot be drawn: {e}") })?;
    Ok(svg)
}

pub(super) type Failure = Box<dyn std::error::Error>;
pub(super) type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

const LEGEND: u32 = 190;

fn draw(results: &Results, form: Form, svg: &mut String) -> Result<(), Failure> {
    let size = if form == Form::File { (720 + LEGEND, 460) } else { (720, 460) };
    let root = SVGBackend::with_string(svg, size).into_drawing_area();
    let (area, legend) = root.split_horizontally(720);
    if form == Form::File {
        root.fill(&WHITE)?;
    }
    let xs: Vec<f64> = (0..results.targets.len()).map(|i| results.budget_percent(i)).collect();
    let (x0, x1) = bounds(xs.iter().copied(), 0.04);
    let spread = results.rows.iter().flat_map(|r| r.curve.iter().flatten()).flat_map(|s| {
        let e = s.se.unwrap_or(0.0);
        [100.0 * (s.mean - e), 100.0 * (s.mean + e)]
    });
    let (y0, y1) = bounds(spread, 0.06);
    let names = ("labelled, % of the pool", "test accuracy, %");
    let mut chart = frame(&area, (x0, x1), (y0.max(0.0), y1.min(101.0)), names)?;
    let text = ("sans-serif", 15).into_font().color(&INK);
    let looks = looks(results);
    // Random last, so that no band hides the line everything is compared with.
    let order = (0..results.rows.len()).rev();
    for i in order {
        let points: Vec<(f64, f64, f64)> = xs
            .iter()
            .zip(&results.rows[i].curve)
            .filter_map(|(x, s)| s.map(|s| (*x, 100.0 * s.mean, 100.0 * s.se.unwrap_or(0.0))))
            .collect();
        line(&mut chart, &points, looks[i])?;
    }
    if form == Form::File {
        for (i, (row, look)) in results.rows.iter().zip(&looks).enumerate() {
            let y = 28 + 22 * i as i32;
            legend.draw(&PathElement::new(vec![(0, y), (30, y)], look.color.stroke_width(2)))?;
            marker(&mut |e| Ok(legend.draw(&e)?), (15, y), *look)?;
            legend.draw(&Text::new(row.name.clone(), (38, y - 8), text.clone()))?;
        }
    }
    root.present()?;
    Ok(())
}

/// Axes and grid.
pub(super) fn frame<'a, 'b>(
    area: &DrawingArea<SVGBackend<'b>, plotters::coord::Shift>,
    (x0, x1): (f64, f64),
    (y0, y1): (f64, f64),
    (x, y): (&str, &str),
) -> Result<Chart<'a, 'b>, Failure> {
    let mut chart: Chart = ChartBuilder::on(area)
        .margin(14)
        .x_label_area_size(48)
        .y_label_area_size(62)
        .build_cartesian_2d(x0..x1, y0..y1)?;
    chart
        .configure_mesh()
        .x_desc(x)
        .y_desc(y)
        .x_labels(8)
        .y_labels(8)
        .max_light_lines(0)
        .bold_line_style(GRID)
        .axis_style(INK)
        .label_style(("sans-serif", 15).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 16).into_font().color(&INK))
        .x_label_formatter(&|v| tick(*v, x1 - x0))
        .y_label_formatter(&|v| tick(*v, y1 - y0))
        .draw()?;
    Ok(chart)
}

/// Draw the test accuracy (%) after each epoch and, below it, the mean training loss.
pub fn training(title: &str, curve: &[EpochRecord]) -> Result<String> {
    let mut svg = String::new();
    draw_training(title, curve, &mut svg)
        .map_err(|e| Error::Data { path: "curve.svg".into(), why: format!("the figure cannot be drawn: {e}") })?;
    Ok(svg)
}

fn draw_training(title: &str, curve: &[EpochRecord], svg: &mut String) -> Result<(), Failure> {
    let root = SVGBackend::with_string(svg, (720, 700)).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 18).into_font().color(&INK))?;
    let (above, below) = root.split_vertically(380);
    let accuracy = |r: &EpochRecord| 100.0 * f64::from(r.correct) / f64::from(r.test_size.max(1));
    let loss = |r: &EpochRecord| r.loss / f64::from(r.steps.max(1));
    let points = |of: &dyn Fn(&EpochRecord) -> f64| -> Vec<(f64, f64)> {
        curve.iter().map(|r| (f64::from(r.epoch) + 1.0, of(r))).collect()
    };
    for (area, points, name, color, top) in [
        (above, points(&accuracy), "test accuracy, %", PALETTE[0], 101.0),
        (below, points(&loss), "mean training loss", PALETTE[1], f64::INFINITY),
    ] {
        let x = bounds(points.iter().map(|p| p.0), 0.02);
        let (y0, y1) = bounds(points.iter().map(|p| p.1), 0.06);
        let mut chart = frame(&area, x, (y0.max(0.0), y1.min(top)), ("epoch", name))?;
        chart.draw_series(LineSeries::new(points.iter().copied(), color.stroke_width(2)))?;
        if let [(x, y)] = points[..] {
            chart.draw_series([Circle::new((x, y), 3, color.filled())])?;
        }
    }
    root.present()?;
    Ok(())
}

fn line(chart: &mut Chart, points: &[(f64, f64, f64)], look: Look) -> Result<(), Failure> {
    if points.len() > 1 && points.iter().any(|p| p.2 > 0.0) {
        let above = points.iter().map(|&(x, y, e)| (x, y + e));
        let below = points.iter().rev().map(|&(x, y, e)| (x, y - e));
        let band: Vec<(f64, f64)> = above.chain(below).collect();
        chart.draw_series([Polygon::new(band, look.color.mix(0.16))])?;
    }
    let mean = points.iter().map(|&(x, y, _)| (x, y));
    let style = look.color.stroke_width(2);
    match look.dash {
        None => chart.draw_series(LineSeries::new(mean, style))?,
        Some((on, off)) => chart.draw_series(DashedLineSeries::new(mean, on, off, style))?,
    };
    for &(x, y, _) in points {
        let at = chart.backend_coord(&(x, y));
        let area = chart.plotting_area().strip_coord_spec();
        let (left, top) = area.get_base_pixel();
        marker(&mut |e| Ok(area.draw(&e)?), (at.0 - left, at.1 - top), look)?;
    }
    Ok(())
}

/// The four marker shapes as one kind of element.
fn marker(
    draw: &mut dyn FnMut(Polygon<(i32, i32)>) -> Result<(), Failure>,
    (x, y): (i32, i32),
    look: Look,
) -> Result<(), Failure> {
    let corners: Vec<(i32, i32)> = outline(look.marker).map(|(dx, dy)| (x + dx, y + dy)).collect();
    draw(Polygon::new(corners, look.color))
}

/// A marker's corners around its centre, in pixels.
pub fn outline(marker: usize) -> impl Iterator<Item = (i32, i32)> + Clone {
    let corners: &[(i32, i32)] = match marker {
        0 => &[(-4, -2), (-2, -4), (2, -4), (4, -2), (4, 2), (2, 4), (-2, 4), (-4, 2)],
        1 => &[(-4, -4), (4, -4), (4, 4), (-4, 4)],
        2 => &[(0, -5), (5, 4), (-5, 4)],
        _ => &[(0, -6), (6, 0), (0, 6), (-6, 0)],
    };
    corners.iter().copied()
}

/// The range of the values with some air; 0 to 1 when there are none.
pub(super) fn bounds(values: impl Iterator<Item = f64>, air: f64) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if low > high {
        return (0.0, 1.0);
    }
    let pad = if high > low { (high - low) * air } else { 1.0 };
    (low - pad, high + pad)
}

/// As many decimals as the ticks of this range need.
fn tick(v: f64, range: f64) -> String {
    let digits = if range >= 8.0 { 0 } else { usize::from(range < 0.8) + 1 };
    format!("{v:.digits$}")
}
