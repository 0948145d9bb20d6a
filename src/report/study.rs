//! The figures of the study of selections: numbers of each method beside each other, and picks among the pool.

use plotters::prelude::*;

use super::figure::{Chart, Failure, INK, PALETTE, bounds, frame};
use super::picks::POOL;
use crate::bench::study::{Places, Selected};
use crate::methods::paper_name;
use crate::{Error, Result};

fn drawn(name: &str, draw: impl Fn(&mut String) -> Result<(), Failure>) -> Result<String> {
    let mut svg = String::new();
    draw(&mut svg).map_err(|e| Error::Data { path: name.into(), why: format!("the figure cannot be drawn: {e}") })?;
    Ok(svg)
}

/// Figure 2: four panels, a dot for each seed over each method, and a line at their mean.
pub fn numbers(all: &[Selected]) -> Result<String> {
    type Panel = (&'static str, fn(&Selected) -> f64);
    let panels: [Panel; 4] = [
        ("diversity", |s| s.diversity),
        ("uncertainty", |s| s.uncertainty),
        ("inconsistency", |s| s.inconsistency),
        ("test accuracy, %", |s| 100.0 * s.accuracy),
    ];
    let mut methods: Vec<&str> = Vec::new();
    for s in all {
        if !methods.contains(&s.method) {
            methods.push(s.method);
        }
    }
    drawn("figure2.svg", |svg| {
        let root = SVGBackend::with_string(svg, (900, 640)).into_drawing_area();
        root.fill(&WHITE)?;
        let (above, key) = root.split_vertically(600);
        for (area, (name, of)) in above.split_evenly((2, 2)).iter().zip(panels) {
            let y = bounds(all.iter().map(of), 0.15);
            let mut chart: Chart = frame(area, (0.5, methods.len() as f64 + 0.5), y, ("method", name))?;
            for (i, method) in methods.iter().enumerate() {
                let (x, color) = (i as f64 + 1.0, PALETTE[i % PALETTE.len()]);
                let values: Vec<f64> = all.iter().filter(|s| s.method == *method).map(of).collect();
                let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
                chart
                    .draw_series([PathElement::new(vec![(x - 0.25, mean), (x + 0.25, mean)], color.stroke_width(2))])?;
                chart.draw_series(values.iter().map(|v| Circle::new((x, *v), 4, color.filled())))?;
            }
        }
        let text = ("sans-serif", 15).into_font().color(&INK);
        for (i, method) in methods.iter().enumerate() {
            let x = 20 + 220 * i as i32;
            key.draw(&Circle::new((x, 18), 5, PALETTE[i % PALETTE.len()].filled()))?;
            key.draw(&Text::new(format!("{} {}", i + 1, paper_name(method)), (x + 12, 10), text.clone()))?;
        }
        root.present()?;
        Ok(())
    })
}

/// Images of the pool in a panel of figure 3. Each dot is a hundred bytes of SVG, and more than these only hide each other.
const SHOWN: usize = 1_000;

/// Figure 3: a panel for each method, some of the pool in grey, all of its picks in colour.
pub fn places(panels: &[Places]) -> Result<String> {
    drawn("figure3.svg", |svg| {
        let root = SVGBackend::with_string(svg, (1000, 930)).into_drawing_area();
        root.fill(&WHITE)?;
        let (above, caption) = root.split_vertically(900);
        let text = ("sans-serif", 15).into_font().color(&INK);
        for (area, panel) in above.split_evenly((2, 2)).iter().zip(panels) {
            let area = area.titled(&paper_name(panel.method), ("sans-serif", 17).into_font().color(&INK))?;
            let all = || panel.pool.iter().chain(&panel.picked);
            let x = bounds(all().map(|p| f64::from(p[0])), 0.03);
            let y = bounds(all().map(|p| f64::from(p[1])), 0.03);
            let mut chart: Chart = frame(&area, x, y, ("first component", "second component"))?;
            let pool = &panel.pool[..panel.pool.len().min(SHOWN)];
            for (dots, size, color) in [(pool, 1, POOL), (&panel.picked, 2, PALETTE[1])] {
                let dot = |p: &[f32; 2]| Circle::new((f64::from(p[0]), f64::from(p[1])), size, color.filled());
                chart.draw_series(dots.iter().map(dot))?;
            }
        }
        let shown = panels.iter().map(|p| p.pool.len().min(SHOWN)).max().unwrap_or_default();
        let words =
            format!("grey: {shown} images of the pool, the same in each panel, drawn at random; colour: all picks");
        caption.draw(&Text::new(words, (20, 8), text))?;
        root.present()?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_is_thinned_and_picks_are_not() {
        let line = |n: u16| (0..n).map(|i| [f32::from(i), f32::from(i % 7)]).collect();
        let draw = |pool, picked| places(&[Places { pool: line(pool), picked: line(picked), method: "ssl-random" }]);
        for (pool, picked, shown) in [(4000, 1500, 1000), (30, 5, 30)] {
            let svg = draw(pool, picked).unwrap();
            assert_eq!(svg.matches("<circle").count(), shown + usize::from(picked));
            assert!(svg.contains(&format!("grey: {shown} images of the pool")), "the caption says so");
        }
    }
}
