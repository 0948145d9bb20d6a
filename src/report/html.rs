//! One self-contained page: no script, no font, no picture from anywhere else, so it can be mailed and kept.

use crate::bench::metrics::Stat;
use crate::bench::store::Run;
use crate::error::Result;
use crate::report::figure::{self, Form, Look};
use crate::report::table::{self, MISSING, Table};
use crate::report::{REFERENCE, Results, Row, named, published};
use std::fmt::Write as _;

/// The report on one data set.
pub fn page(r: &Results) -> Result<String> {
    let looks = figure::looks(r);
    let mut body = format!("<h1>Active learning on {}</h1>\n", escape(&r.dataset));
    let _ = write!(body, "<p>{}</p>\n{}{}", headline(r), facts(r), notes(r));
    let section = |title: &str, words: &str, content: String| {
        format!("<h2>{title}</h2>\n<p class=\"soft\">{words}</p>\n{content}")
    };
    body += &section(
        "Improvement over random",
        "API: the mean over all budgets of the difference to random in accuracy, in percentage points, paired by \
         seed. ± is the standard error over seeds.",
        html_table(&headline_table(r), &keys(r, &looks)),
    );
    body += &section(
        "Accuracy against budget",
        &format!("{}. Mean over seeds; the band is ± one standard error.", capital(r.rule.words())),
        format!("<figure class=\"card\">\n{}{}</figure>\n", inline_svg(r)?, legend(r, &looks)),
    );
    body += &section(
        "Accuracy by budget",
        &format!("In %; columns are labelled shares of the {} pool images. Bold: the best of a column.", r.pool),
        per_budget(r, &looks),
    );
    body += &section("Seconds per round", r.cost_words(), html_table(&r.cost_table(), &keys(r, &looks)));
    body += &section("Made with", "A number is worth what is known about its making.", manifests(r));
    Ok(document(&format!("{} · {} · {}", r.dataset, r.preset, r.profile), &body))
}

/// The data sets of one preset and profile beside each other.
pub fn index(all: &[Results]) -> Result<String> {
    let mut body = String::from("<h1>Active learning, all data sets</h1>\n");
    if let Some(r) = all.first() {
        let _ = write!(
            body,
            "<ul class=\"facts\"><li>preset {}</li><li>profile {}</li></ul>\n<p class=\"soft\">API in percentage points \
             over random, ± standard error over seeds. {}.</p>\n",
            escape(&r.preset),
            escape(&r.profile),
            capital(r.rule.words())
        );
    }
    let mut ids: Vec<(&str, &str)> = Vec::new();
    for row in all.iter().flat_map(|r| &r.rows) {
        if !ids.iter().any(|(id, _)| *id == row.id) {
            ids.push((&row.id, &row.name));
        }
    }
    ids.sort_by_key(|(id, _)| (published::rank(id), *id));
    let head = all.iter().map(|r| {
        let name = escape(&r.dataset);
        format!("<th><a href=\"{name}/report.html\">{name}</a></th>")
    });
    body += &format!(
        "<div class=\"card scroll\"><table><thead><tr><th>method</th>{}</tr></thead><tbody>\n",
        head.collect::<String>()
    );
    for (id, name) in ids {
        let cell = |r: &Results| match r.rows.iter().find(|row| row.id == id) {
            Some(row) => api(row),
            None => MISSING.into(),
        };
        let cells: String = all.iter().map(|r| format!("<td>{}</td>", cell(r))).collect();
        let _ = writeln!(body, "<tr><th>{}</th>{cells}</tr>", escape(name));
    }
    body += "</tbody></table></div>\n";
    for r in all.iter().filter(|r| !r.notes.is_empty()) {
        let _ = write!(body, "<h2>{}</h2>{}", escape(&r.dataset), notes(r));
    }
    Ok(document("dalcore results", &body))
}

pub(super) fn document(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{}</title>\n\
         <style>\n{}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        escape(title),
        include_str!("page.css")
    )
}

/// The result in one sentence.
fn headline(r: &Results) -> String {
    let defined = |row: &&Row| row.id != REFERENCE && row.api.is_some();
    let best = r.rows.iter().filter(defined).max_by(|a, b| {
        let mean = |row: &Row| row.api.map_or(f64::NEG_INFINITY, |s| s.mean);
        mean(a).total_cmp(&mean(b))
    });
    let Some((best, api)) = best.and_then(|b| Some((b, b.api?))) else {
        return "No method can be compared with random yet.".into();
    };
    let spread = match api.se {
        Some(e) => format!(" (standard error {e:.2} over {} seeds)", api.n),
        None => " (one seed, so nothing is known about the spread)".into(),
    };
    let cost = best.cost_ratio.map_or(String::new(), |c| format!(", at {c:.2} times its cost"));
    let name = escape(&best.name);
    match api.mean {
        m if m >= 0.005 => {
            format!("<strong>{name}</strong> is best: {m:.2} points above random on average{spread}{cost}.")
        }
        m if m > -0.005 => format!("The best method, <strong>{name}</strong>, is level with random{spread}{cost}."),
        m => format!(
            "No method beats random; <strong>{name}</strong> comes closest, {:.2} points below on average{spread}{cost}.",
            -m
        ),
    }
}

fn facts(r: &Results) -> String {
    let mut seeds: Vec<u64> = r.rows.iter().flat_map(|row| row.seeds.iter().copied()).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    let mut devices: Vec<&str> = r.runs.iter().map(|run| run.manifest.device.as_str()).collect();
    devices.dedup();
    let mut all = vec![
        format!("preset {}", r.preset),
        format!("profile {}", r.profile),
        format!("{} {}", if seeds.len() == 1 { "seed" } else { "seeds" }, seeds.join(", ")),
        format!("{} budgets", r.targets.len()),
    ];
    all.extend(r.runs.first().map(|run| format!("{}, {}", run.manifest.model, run.manifest.precision)));
    all.extend(devices.first().map(|d| d.to_string()));
    let items: String = all.iter().map(|f| format!("<li>{}</li>", escape(f))).collect();
    format!("<ul class=\"facts\">{items}</ul>\n")
}

fn notes(r: &Results) -> String {
    if r.notes.is_empty() {
        return String::new();
    }
    let items: String = r.notes.iter().map(|n| format!("<li>{}</li>", escape(n))).collect();
    format!("<div class=\"notes\" role=\"note\"><strong>Before you read on</strong><ul>{items}</ul></div>\n")
}

fn api(row: &Row) -> String {
    if row.id == REFERENCE && row.api.is_some() { "0.00".into() } else { table::points(row.api) }
}

fn headline_table(r: &Results) -> Table {
    let mut head = vec!["method", "API pp"];
    if r.has_published() {
        head.push("published API");
    }
    head.extend(["final accuracy %", "cost × random", "seeds"]);
    let mut t = Table::new(head);
    for row in &r.rows {
        let mut cells = vec![row.name.clone(), api(row)];
        if r.has_published() {
            cells.push(row.published.map_or("not published".into(), table::signed));
        }
        cells.push(table::percent(row.curve.last().copied().flatten().map(|s| s.mean)));
        cells.extend([table::times(row.cost_ratio), row.seeds.len().to_string()]);
        t.rows.push(cells);
    }
    t
}

/// A table with a drawn key before each name.
pub(super) fn html_table(t: &Table, keys: &[String]) -> String {
    let head: String = t.head.iter().map(|h| format!("<th>{}</th>", escape(h))).collect();
    let mut out = format!("<div class=\"card scroll\"><table><thead><tr>{head}</tr></thead><tbody>\n");
    for (i, row) in t.rows.iter().enumerate() {
        let cells: String = row.iter().skip(1).map(|c| format!("<td>{}</td>", escape(c))).collect();
        let key = keys.get(i).map_or("", String::as_str);
        let _ = writeln!(out, "<tr><th>{key}{}</th>{cells}</tr>", escape(row.first().map_or("", String::as_str)));
    }
    out + "</tbody></table></div>\n"
}

fn per_budget(r: &Results, looks: &[Look]) -> String {
    let points = r.targets.len();
    let head: String = (0..points).map(|i| format!("<th>{}<br>{}</th>", escape(&r.budget(i)), r.targets[i])).collect();
    let mut out = format!("<div class=\"card scroll\"><table><thead><tr><th>method</th>{head}</tr></thead><tbody>\n");
    let shown = |s: Stat| format!("{:.2}", 100.0 * s.mean);
    let at = |row: &Row, i: usize| row.curve.get(i).copied().flatten();
    let best = |i: usize| {
        let means = r.rows.iter().filter_map(|row| at(row, i));
        means.max_by(|a, b| a.mean.total_cmp(&b.mean)).map(shown)
    };
    // At the shared start everybody is best.
    let bold: Vec<Option<String>> = (0..points)
        .map(|i| best(i).filter(|b| r.rows.iter().filter_map(|row| at(row, i)).any(|s| shown(s) != *b)))
        .collect();
    for (row, key) in r.rows.iter().zip(keys(r, looks)) {
        let _ = write!(out, "<tr><th>{key}{}</th>", escape(&row.name));
        for (i, bold) in bold.iter().enumerate() {
            let Some(s) = at(row, i) else {
                let _ = write!(out, "<td>{MISSING}</td>");
                continue;
            };
            let class = if bold.as_ref() == Some(&shown(s)) { " class=\"best\"" } else { "" };
            let se = s.se.map_or(String::new(), |e| format!("<br><small>± {:.2}</small>", 100.0 * e));
            let _ = write!(out, "<td{class}>{}{se}</td>", shown(s));
        }
        out += "</tr>\n";
    }
    out + "</tbody></table></div>\n" + &every_run(r)
}

/// Each seed by itself, folded away.
fn every_run(r: &Results) -> String {
    let budgets = (0..r.targets.len()).map(|i| r.budget(i));
    let mut t = Table::new(["run".to_string()].into_iter().chain(budgets));
    for run in &r.runs {
        let name = r.rows.iter().find(|row| row.id == run.manifest.method).map_or("", |row| row.name.as_str());
        let mut cells = vec![format!("{name}, seed {}", run.manifest.seed)];
        cells.extend(r.rule.curve(run).into_iter().map(table::percent));
        t.rows.push(cells);
    }
    format!("<details class=\"card\"><summary>Every seed by itself</summary>\n{}</details>\n", html_table(&t, &[]))
}

fn manifests(r: &Results) -> String {
    let mut out = String::new();
    for (facts, runs) in r.environments() {
        let items: String = facts.iter().map(|(k, v)| format!("<dt>{k}</dt><dd>{}</dd>", escape(v))).collect();
        let _ = writeln!(
            out,
            "<div class=\"card scroll\" style=\"padding:.2rem 1rem\"><dl>{items}<dt>runs</dt><dd>{}</dd></dl></div>",
            escape(&runs)
        );
    }
    let mut configs: Vec<(String, Vec<&Run>)> = Vec::new();
    for run in &r.runs {
        let text = serde_json::to_string_pretty(&run.manifest.config).unwrap_or_default();
        match configs.iter_mut().find(|(t, _)| *t == text) {
            Some((_, runs)) => runs.push(run),
            None => configs.push((text, vec![run])),
        }
    }
    for (text, runs) in configs {
        let _ = writeln!(
            out,
            "<details class=\"card\"><summary>Configuration of {}</summary><pre>{}</pre></details>",
            if runs.len() == r.runs.len() { "all runs".into() } else { escape(&named(runs.iter().map(|x| (*x, 0)))) },
            escape(&text)
        );
    }
    out
}

/// The accuracy figure.
fn inline_svg(r: &Results) -> Result<String> {
    let label = "Test accuracy against labelled share of the pool; the same numbers are in the table below";
    Ok(inline(&figure::accuracy(r, Form::Inline)?, label))
}

/// A figure without what a picture file needs and a page does not, and with words for those who cannot see it.
pub(super) fn inline(svg: &str, label: &str) -> String {
    let Some((head, rest)) = svg.split_once('>') else { return svg.into() };
    let view = head.split("viewBox=").nth(1).and_then(|v| v.split('"').nth(1)).unwrap_or("0 0 720 460");
    format!("<svg viewBox=\"{view}\" role=\"img\" aria-label=\"{}\">{rest}", escape(label))
}

fn legend(r: &Results, looks: &[Look]) -> String {
    let item = |(row, key): (&Row, String)| format!("<li>{key}{}</li>", escape(&row.name));
    let items: String = r.rows.iter().zip(keys(r, looks)).map(item).collect();
    format!("<ul class=\"legend\">{items}</ul>\n")
}

/// Line and marker of each row, small enough to stand in a line of text.
fn keys(r: &Results, looks: &[Look]) -> Vec<String> {
    let key = |(_, look): (&Row, &Look)| {
        let color = format!("#{:02X}{:02X}{:02X}", look.color.0, look.color.1, look.color.2);
        let dash = look.dash.map_or(String::new(), |(on, off)| format!(" stroke-dasharray=\"{on} {off}\""));
        let corners: Vec<String> = figure::outline(look.marker).map(|(x, y)| format!("{},{}", 17 + x, 7 + y)).collect();
        format!(
            "<svg class=\"key\" viewBox=\"0 0 34 14\" aria-hidden=\"true\"><path d=\"M0 7H34\" stroke=\"{color}\" \
             stroke-width=\"2\"{dash}/><polygon points=\"{}\" fill=\"{color}\"/></svg>",
            corners.join(" ")
        )
    };
    r.rows.iter().zip(looks).map(key).collect()
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |c| c.to_uppercase().chain(chars).collect())
}

pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
