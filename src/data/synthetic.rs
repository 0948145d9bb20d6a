//! The built-in data set: digit-like glyphs drawn from stroke skeletons, 28×28 grey, ten classes.
//!
//! Every example is a pure function of (seed, split, index), so the set needs no download, no storage and no
//! particular number of threads. Only `+ - * /`, `sqrt` and integers reach a pixel, all exactly rounded by
//! IEEE 754, so the bytes are the same on every platform; a test holds their sha-256.
//!
//! The examples are deliberately unequal: six in ten are near-duplicates of a class's usual shape, a quarter is
//! distorted and noisy, and the rest combines rare ways of writing a digit with rare pens and heavy clutter. A
//! random sample keeps paying for the first kind; the test set asks for all three in the same proportions.

use std::borrow::Cow;

use rayon::prelude::*;

use super::{Augment, Budgets, DataDir, Dataset, Flip, Images, Model, Spec, Verify};
use crate::error::Result;
use crate::rng::{Purpose, Rng};

/// The description of the data set; whatever it does not define itself is as for MNIST.
pub static SPEC: Spec = Spec {
    id: Cow::Borrowed("synthetic"),
    paper_name: Cow::Borrowed("synthetic"),
    about: "digit-like glyphs generated from a fixed seed; built in, nothing to download",
    classes: 10,
    h: SIDE,
    w: SIDE,
    c: 1,
    train_len: 12_000,
    test_len: 2_000,
    mean: Cow::Borrowed(&[0.1307]),
    std: Cow::Borrowed(&[0.3081]),
    clean: Augment { crop_pad: 2, flip: Flip::Never },
    repro: Augment { crop_pad: 2, flip: Flip::Never },
    batch_train: 128,
    batch_test: 1024,
    model: Model::LeNet,
    budgets: Budgets { start: 2, query: 2, end: 20 },
    epochs: 150,
    milestones: &[60, 120],
};

/// The seed of the data set. It is part of its definition and has nothing to do with the seed of a run.
pub const SEED: u64 = 2021;

const SIDE: usize = 28;
const PIXELS: usize = SIDE * SIDE;

/// Which half of the data set an example belongs to; the number goes into its random address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// The pool.
    Train = 0,
    /// The test set.
    Test = 1,
}

/// Generate the data set. `dir` and `verify` are there for the common loader signature; nothing is read.
pub fn load(_dir: &DataDir, _verify: Verify) -> Result<Dataset> {
    let train = generate(SEED, Split::Train, SPEC.train_len);
    let test = generate(SEED, Split::Test, SPEC.test_len);
    Ok(Dataset::new(&SPEC, train, test))
}

/// The first `n` examples of a split. Every ten consecutive examples hold each class once, in random order.
pub fn generate(seed: u64, split: Split, n: usize) -> Images {
    let labels: Vec<u32> = (0..n.div_ceil(10))
        .flat_map(|block| address(seed, split, block, Lane::Label).permutation(10))
        .take(n)
        .collect();
    let mut pixels = vec![0; n * PIXELS];
    pixels
        .par_chunks_exact_mut(PIXELS)
        .zip(&labels)
        .enumerate()
        .for_each(|(i, (out, &label))| render(out, label as usize, seed, split, i));
    Images { n, h: SIDE, w: SIDE, c: 1, pixels, labels }
}

/// One random stream per aspect of an example.
#[derive(Clone, Copy)]
enum Lane {
    Label,
    Shape,
    Elastic,
    Noise,
    Clutter,
}

fn address(seed: u64, split: Split, index: usize, lane: Lane) -> Rng {
    Rng::new(seed).at(Purpose::Synthetic, split as u32, index as u32).lane(lane as u32)
}

/// Uniform in [-1, 1).
fn signed(rng: Rng, element: u64) -> f32 {
    2.0 * rng.uniform(element) - 1.0
}

/// A choice below `n`, by integer scaling.
fn choice(rng: Rng, element: u64, n: usize) -> usize {
    ((u64::from(rng.u32(element)) * n as u64) >> 32) as usize
}

/// What varies within one kind of example, and how far.
struct Kind {
    /// Share of all examples; the rows of `KINDS` add up to one.
    share: f32,
    /// Probabilities: the second of the common forms, a rare form, a rare pen.
    second: f32,
    rare_form: f32,
    rare_pen: f32,
    /// Least radius of the pen, in pixels.
    pen: f32,
    /// Half-ranges: tangent of half the rotation angle, shear, relative width and height.
    turn: f32,
    shear: f32,
    stretch: f32,
    /// The glyph gets smaller by up to this share.
    shrink: f32,
    /// Half-ranges in pixels.
    shift: f32,
    elastic: f32,
    /// Standard deviation of the pixel noise, in units of white.
    noise: f32,
    /// How far ink may fade; the ground brightens by up to 0.4 of that.
    fade: f32,
    /// At most this many foreign strokes at the border, and specks.
    strokes: usize,
    specks: usize,
}

// Tuned so that rare forms are rare, not illegible: examples that no training can fit make an uncertainty rule
// waste its labels on them.
#[rustfmt::skip]
const KINDS: [Kind; 3] = [
    Kind { share: 0.60, second: 0.0, rare_form: 0.00, rare_pen: 0.0, pen: 1.7, turn: 0.03, shear: 0.06, stretch: 0.05,
           shrink: 0.0, shift: 0.4, elastic: 0.4, noise: 0.02, fade: 0.05, strokes: 0, specks: 0 },
    Kind { share: 0.25, second: 0.6, rare_form: 0.15, rare_pen: 0.0, pen: 1.4, turn: 0.10, shear: 0.20, stretch: 0.12,
           shrink: 0.1, shift: 0.8, elastic: 1.2, noise: 0.03, fade: 0.10, strokes: 0, specks: 1 },
    Kind { share: 0.15, second: 0.5, rare_form: 0.80, rare_pen: 0.4, pen: 1.1, turn: 0.20, shear: 0.30, stretch: 0.15,
           shrink: 0.3, shift: 1.2, elastic: 1.4, noise: 0.04, fade: 0.15, strokes: 1, specks: 1 },
];

/// How a stroke marks the paper.
#[derive(Clone, Copy, PartialEq)]
enum Pen {
    Solid,
    /// Both edges of a broad stroke, nothing between them.
    Hollow,
    Dashed,
}

type Point = [f32; 2];

/// Everything between the skeleton and the paper.
struct Warp {
    /// Rows of the 2×2 matrix that takes glyph units to pixels.
    m: [[f32; 2]; 2],
    centre: Point,
    elastic: f32,
    field: Rng,
}

impl Warp {
    /// From glyph units, 0 to 100 in both directions, to pixels.
    fn apply(&self, [x, y]: Point) -> Point {
        let (x, y) = (x - 50.0, y - 50.0);
        let p = [
            self.m[0][0] * x + self.m[0][1] * y + self.centre[0],
            self.m[1][0] * x + self.m[1][1] * y + self.centre[1],
        ];
        if self.elastic == 0.0 {
            return p;
        }
        let d = self.displacement(p);
        [p[0] + self.elastic * d[0], p[1] + self.elastic * d[1]]
    }

    /// A smooth random field: uniform quadratic B-spline over a coarse grid of random vectors.
    fn displacement(&self, p: Point) -> Point {
        const CELL: f32 = 7.0;
        let (gx, gy) = ((p[0] / CELL).clamp(0.0, 3.99), (p[1] / CELL).clamp(0.0, 3.99));
        let (ix, iy) = (gx as u64, gy as u64);
        let (wx, wy) = (spline_weights(gx - ix as f32), spline_weights(gy - iy as f32));
        let mut d = [0.0; 2];
        for (r, wy) in wy.iter().enumerate() {
            for (s, wx) in wx.iter().enumerate() {
                let knot = 2 * ((iy + r as u64) * 6 + ix + s as u64);
                d[0] += wy * wx * signed(self.field, knot);
                d[1] += wy * wx * signed(self.field, knot + 1);
            }
        }
        // The weights average nine vectors; three brings the spread back to that of one.
        [3.0 * d[0], 3.0 * d[1]]
    }
}

fn spline_weights(t: f32) -> [f32; 3] {
    let u = 1.0 - t;
    [0.5 * u * u, 0.5 + t * u, 0.5 * t * t]
}

/// Squared distance of every pixel centre to the nearest stroke drawn so far.
struct Paper([f32; PIXELS]);

const FAR: f32 = 1.0e6;

impl Paper {
    fn new() -> Paper {
        Paper([FAR; PIXELS])
    }

    /// Lower the distances within `reach` of the segment `a`–`b`.
    fn segment(&mut self, a: Point, b: Point, reach: f32) {
        let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
        let length2 = dx * dx + dy * dy;
        let scale = if length2 > 0.0 { 1.0 / length2 } else { 0.0 };
        let clip = |v: f32| v.clamp(0.0, SIDE as f32) as usize;
        for y in clip(a[1].min(b[1]) - reach)..clip(a[1].max(b[1]) + reach + 1.0) {
            for x in clip(a[0].min(b[0]) - reach)..clip(a[0].max(b[0]) + reach + 1.0) {
                let (px, py) = (x as f32 + 0.5 - a[0], y as f32 + 0.5 - a[1]);
                let t = ((px * dx + py * dy) * scale).clamp(0.0, 1.0);
                let (ex, ey) = (px - t * dx, py - t * dy);
                let d = &mut self.0[y * SIDE + x];
                *d = d.min(ex * ex + ey * ey);
            }
        }
    }

    fn glyph(&mut self, strokes: &[Stroke], warp: &Warp, pen: Pen, reach: f32) {
        let mut walked = 0.0;
        for stroke in strokes {
            let mut last: Option<Point> = None;
            stroke.walk(|p| {
                let p = warp.apply(p);
                if let Some(q) = last {
                    match pen {
                        Pen::Solid | Pen::Hollow => self.segment(q, p, reach),
                        Pen::Dashed => self.dashes(q, p, reach, &mut walked),
                    }
                }
                last = Some(p);
            });
        }
    }

    /// The part of a segment on which the pen is down, `walked` pixels into its stroke.
    fn dashes(&mut self, a: Point, b: Point, reach: f32, walked: &mut f32) {
        const DASH: f32 = 2.5;
        const PIECES: usize = 6; // of a segment of about five pixels, so a dash is never missed
        let along = |s: usize| [0, 1].map(|k| a[k] + (b[k] - a[k]) * (s as f32 / PIECES as f32));
        let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
        let piece = (dx * dx + dy * dy).sqrt() / PIECES as f32;
        for s in 0..PIECES {
            if ((*walked / DASH) as u32).is_multiple_of(2) {
                self.segment(along(s), along(s + 1), reach);
            }
            *walked += piece;
        }
    }

    /// Coverage of pixel `i` by a pen of this radius, with an anti-aliased edge.
    fn ink(&self, i: usize, pen: Pen, radius: f32) -> f32 {
        let d = self.0[i].sqrt();
        let edge = match pen {
            Pen::Hollow => 0.55 - (d - radius).abs(),
            Pen::Solid | Pen::Dashed => radius - d,
        };
        (edge + 0.5).clamp(0.0, 1.0)
    }
}

/// Draw one example.
fn render(out: &mut [u8], label: usize, seed: u64, split: Split, index: usize) {
    let shape = address(seed, split, index, Lane::Shape);
    let clutter = address(seed, split, index, Lane::Clutter);
    let noise = address(seed, split, index, Lane::Noise);

    let mut u = shape.uniform(0);
    let mut kind = &KINDS[KINDS.len() - 1];
    for k in &KINDS {
        if u < k.share {
            kind = k;
            break;
        }
        u -= k.share;
    }
    let [common, rare] = &GLYPHS[label];
    let strokes = if shape.uniform(1) < kind.rare_form {
        rare[choice(shape, 2, rare.len())]
    } else {
        // The first form is the usual one.
        common[usize::from(shape.uniform(2) < kind.second)]
    };
    let pen = match shape.uniform(3) < kind.rare_pen {
        true => [Pen::Hollow, Pen::Dashed][choice(shape, 4, 2)],
        false => Pen::Solid,
    };
    let radius = match pen {
        Pen::Hollow => 1.5 + 0.3 * shape.uniform(5),
        Pen::Solid | Pen::Dashed => kind.pen + 0.4 * shape.uniform(5),
    };
    let warp = Warp {
        m: matrix(kind, shape),
        centre: [14.0 + kind.shift * signed(shape, 10), 14.0 + kind.shift * signed(shape, 11)],
        elastic: kind.elastic,
        field: address(seed, split, index, Lane::Elastic),
    };
    let mut paper = Paper::new();
    paper.glyph(strokes, &warp, pen, radius + 1.5);
    let mut foreign = Paper::new();
    for k in 0..choice(clutter, 0, kind.strokes + 1) {
        foreign_stroke(&mut foreign, clutter, 8 + 8 * k as u64);
    }
    for k in 0..choice(clutter, 1, kind.specks + 1) as u64 {
        let p = [28.0 * clutter.uniform(40 + 2 * k), 28.0 * clutter.uniform(41 + 2 * k)];
        foreign.segment(p, p, 2.5);
    }

    let white = 1.0 - kind.fade * shape.uniform(12);
    let ground = 0.4 * kind.fade * shape.uniform(13);
    let slope = [0.012 * kind.fade * signed(shape, 14), 0.012 * kind.fade * signed(shape, 15)];
    for (i, out) in out.iter_mut().enumerate() {
        let ink = paper.ink(i, pen, radius).max(0.8 * foreign.ink(i, Pen::Solid, 0.7));
        let (x, y) = ((i % SIDE) as f32 - 13.5, (i / SIDE) as f32 - 13.5);
        let base = ground + slope[0] * x + slope[1] * y;
        let mut v = base + (white - base) * ink;
        // A sum of four bytes: mean 510, standard deviation 147.8, and the same integers everywhere.
        let sum: u32 = noise.u32(i as u64).to_le_bytes().iter().map(|&b| u32::from(b)).sum();
        v += kind.noise * (sum as f32 - 510.0) * (1.0 / 147.8);
        *out = (255.0 * v + 0.5) as u8; // saturates at both ends
    }
}

/// Rotation × shear × scale, from glyph units (a hundred across) to pixels. The rotation comes from the rational
/// parametrisation of the circle: sin and cos of the platform's library differ in the last bit.
fn matrix(kind: &Kind, shape: Rng) -> [[f32; 2]; 2] {
    let t = kind.turn * signed(shape, 6);
    let (cos, sin) = ((1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t));
    let shear = kind.shear * signed(shape, 7);
    let size = 1.0 - kind.shrink * shape.uniform(16);
    let sx = 0.12 * size * (1.0 + kind.stretch * signed(shape, 8));
    let sy = 0.185 * size * (1.0 + kind.stretch * signed(shape, 9));
    [[cos * sx, (cos * shear - sin) * sy], [sin * sx, (sin * shear + cos) * sy]]
}

/// A piece of some other glyph that looks in over the border.
fn foreign_stroke(paper: &mut Paper, rng: Rng, at: u64) {
    let strokes = GLYPHS[choice(rng, at, GLYPHS.len())][0][0];
    let along = 28.0 * rng.uniform(at + 1);
    let outside = 4.0 * rng.uniform(at + 2);
    let centre = match choice(rng, at + 3, 4) {
        0 => [along, -outside],
        1 => [along, 28.0 + outside],
        2 => [-outside, along],
        _ => [28.0 + outside, along],
    };
    let t = signed(rng, at + 4);
    let (cos, sin) = ((1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t));
    let m = [[0.1 * cos, -0.14 * sin], [0.1 * sin, 0.14 * cos]];
    paper.glyph(strokes, &Warp { m, centre, elastic: 0.0, field: rng }, Pen::Solid, 2.5);
}

/// One movement of the pen, in glyph units: x to the right, y down, 0 to 100.
enum Stroke {
    /// Straight from point to point.
    Line(&'static [(u8, u8)]),
    /// Smoothly through all points (Catmull–Rom).
    Curve(&'static [(u8, u8)]),
}

impl Stroke {
    /// Visit points along the stroke, close enough together for an elastic warp to bend it.
    fn walk(&self, mut visit: impl FnMut(Point)) {
        const STEPS: usize = 4;
        let (points, smooth) = match self {
            Stroke::Line(points) => (*points, false),
            Stroke::Curve(points) => (*points, true),
        };
        let at = |i: usize| points.get(i).or(points.last()).map_or([0.0; 2], |p| [f32::from(p.0), f32::from(p.1)]);
        visit(at(0));
        for i in 1..points.len() {
            let (p0, p1, p2, p3) = (at(i.saturating_sub(2)), at(i - 1), at(i), at(i + 1));
            for s in 1..=STEPS {
                let t = s as f32 / STEPS as f32;
                visit([0, 1].map(|k| {
                    let (p0, p1, p2, p3) = (p0[k], p1[k], p2[k], p3[k]);
                    if smooth {
                        let (b, c) = (2.0 * p0 - 5.0 * p1 + 4.0 * p2 - p3, 3.0 * p1 - 3.0 * p2 + p3 - p0);
                        p1 + 0.5 * t * (p2 - p0 + t * (b + t * c))
                    } else {
                        p1 + t * (p2 - p1)
                    }
                }));
            }
        }
    }
}

use Stroke::{Curve, Line};

/// A way of writing a digit.
type Glyph = &'static [Stroke];

/// Per class two common and some rare ways of writing it.
#[rustfmt::skip]
static GLYPHS: [[&[Glyph]; 2]; 10] = [
    [
        &[&[Curve(&[(50, 0), (15, 20), (5, 50), (15, 80), (50, 100), (85, 80), (95, 50), (85, 20), (50, 0)])],
          &[Curve(&[(62, 0), (32, 25), (22, 60), (35, 95), (58, 95), (75, 65), (80, 25), (62, 0)])]],
        &[&[Curve(&[(50, 0), (15, 20), (5, 50), (15, 80), (50, 100), (85, 80), (95, 50), (85, 20), (50, 0)]),
            Line(&[(88, 8), (12, 92)])],
          &[Line(&[(10, 0), (90, 0), (90, 100), (10, 100), (10, 0)])]],
    ],
    [
        &[&[Line(&[(50, 0), (50, 100)])],
          &[Line(&[(22, 24), (54, 0), (54, 100)])]],
        &[&[Line(&[(22, 24), (54, 0), (54, 100)]), Line(&[(18, 100), (88, 100)])],
          &[Line(&[(20, 0), (80, 0)]), Line(&[(50, 0), (50, 100)]), Line(&[(20, 100), (80, 100)])]],
    ],
    [
        &[&[Curve(&[(10, 22), (30, 2), (65, 0), (85, 22), (75, 48), (40, 75), (8, 98)]), Line(&[(8, 98), (95, 98)])],
          &[Curve(&[(12, 25), (35, 2), (70, 5), (82, 30), (60, 65), (25, 95), (8, 85), (25, 72), (55, 90), (95, 95)])]],
        &[&[Line(&[(10, 5), (90, 5), (10, 95), (92, 95)])],
          &[Line(&[(10, 0), (90, 0), (90, 50), (10, 50), (10, 100), (90, 100)])]],
    ],
    [
        &[&[Curve(&[(10, 12), (40, 0), (78, 10), (80, 35), (40, 48)]),
            Curve(&[(40, 48), (82, 58), (90, 80), (60, 100), (8, 88)])],
          &[Line(&[(12, 2), (86, 2), (42, 42)]), Curve(&[(42, 42), (80, 50), (90, 75), (65, 98), (8, 92)])]],
        &[&[Line(&[(10, 0), (90, 0), (90, 100), (10, 100)]), Line(&[(25, 50), (90, 50)])],
          &[Curve(&[(12, 10), (55, 0), (80, 20), (55, 45), (30, 52), (38, 42), (60, 52), (90, 75), (60, 100), (8, 90)])]],
    ],
    [
        &[&[Line(&[(20, 0), (10, 58), (92, 58)]), Line(&[(70, 20), (70, 100)])],
          &[Line(&[(68, 100), (68, 0), (5, 66), (95, 66)])]],
        &[&[Line(&[(10, 0), (10, 50), (90, 50)]), Line(&[(90, 0), (90, 100)])],
          &[Curve(&[(15, 0), (12, 40), (45, 55), (82, 42)]), Line(&[(88, 0), (76, 100)])]],
    ],
    [
        &[&[Line(&[(88, 0), (25, 0), (18, 42)]), Curve(&[(18, 42), (50, 34), (88, 55), (80, 90), (40, 100), (8, 88)])],
          &[Curve(&[(88, 4), (45, 0), (18, 18), (30, 42), (70, 55), (85, 78), (55, 100), (10, 90)])]],
        &[&[Line(&[(90, 0), (10, 0), (10, 50), (90, 50), (90, 100), (10, 100)])],
          &[Curve(&[(25, 20), (20, 48), (60, 42), (88, 65), (60, 100), (10, 92)]), Line(&[(35, 6), (98, 0)])]],
    ],
    [
        &[&[Curve(&[(75, 2), (35, 20), (10, 60), (25, 95), (65, 98), (88, 75), (65, 50), (30, 58), (12, 75)])],
          &[Line(&[(25, 0), (15, 75)]), Curve(&[(15, 75), (40, 48), (82, 60), (78, 92), (40, 100), (15, 75)])]],
        &[&[Line(&[(90, 0), (10, 0), (10, 100), (90, 100), (90, 50), (10, 50)])],
          &[Curve(&[(85, 12), (60, 0), (25, 25), (8, 65), (35, 100), (80, 90), (78, 60), (45, 55), (30, 75), (50, 85)])]],
    ],
    [
        &[&[Line(&[(8, 2), (90, 2), (40, 100)])],
          &[Line(&[(8, 4), (88, 4)]), Curve(&[(88, 4), (60, 40), (48, 70), (44, 100)])]],
        &[&[Line(&[(8, 2), (90, 2), (40, 100)]), Line(&[(30, 52), (82, 48)])],
          &[Line(&[(10, 30), (10, 0), (90, 0), (90, 100)])]],
    ],
    [
        &[&[Curve(&[(50, 48), (15, 30), (25, 5), (50, 0), (78, 8), (82, 30), (50, 48), (12, 72), (22, 95), (50, 100),
                    (80, 94), (88, 70), (50, 48)])],
          &[Curve(&[(80, 10), (45, 0), (18, 20), (50, 48), (85, 75), (55, 100), (15, 80), (45, 52), (80, 22), (80, 10)])]],
        &[&[Curve(&[(50, 0), (25, 10), (25, 36), (50, 46), (75, 36), (75, 10), (50, 0)]),
            Curve(&[(50, 46), (10, 58), (10, 90), (50, 100), (90, 90), (90, 58), (50, 46)])],
          &[Line(&[(10, 0), (90, 0), (90, 100), (10, 100), (10, 0)]), Line(&[(10, 50), (90, 50)])]],
    ],
    [
        &[&[Curve(&[(85, 25), (65, 2), (25, 5), (12, 30), (35, 52), (70, 45), (85, 25)]), Line(&[(85, 25), (75, 100)])],
          &[Curve(&[(85, 25), (65, 2), (25, 5), (12, 30), (35, 52), (70, 45), (85, 25)]),
            Curve(&[(85, 25), (88, 60), (70, 95), (30, 98)])]],
        &[&[Line(&[(90, 50), (10, 50), (10, 0), (90, 0), (90, 100), (10, 100)])],
          &[Curve(&[(82, 8), (40, 0), (12, 25), (40, 50), (82, 30), (84, 5)]),
            Curve(&[(84, 5), (88, 70), (55, 100), (12, 80)])]],
    ],
];
