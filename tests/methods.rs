//! The conformance suite: what every row of `METHODS` must do, and the worked examples of the rules.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::OnceLock;

use dalcore::bench::config::{Config, Preset, Profile, parse_setting};
use dalcore::clock::Clock;
use dalcore::data::{Dataset, Pool, PoolIdx, synthetic};
use dalcore::device::Device;
use dalcore::methods::{Entry, METHODS, Method, Query, Round, check_picks, gcn};
use dalcore::nn::critic::Critic;
use dalcore::nn::lenet::LeNet;
use dalcore::nn::losshead::LossHead;
use dalcore::nn::vae::Sizes;
use dalcore::nn::{Ctx, Dropout, Layout, Net, checkpoint};
use dalcore::ops::{self, AdamRule, View};
use dalcore::rng::{Purpose, Rng, lane_of};
use dalcore::select::{Stops, kcenter, kmeans, max_cover, purity_radius};
use dalcore::tensor::{Buf, Tensor};
use dalcore::train::{Adversarial, DeviceData, Duel, Fit, Game, Kl, Model, Pass, Recipe, Sign, Stakes, Trainer, sweep};
use dalcore::{Error, Result};

const POOL: usize = 400;
const LABELLED: usize = 60;

/// A small pool with a model of each method's own that has learned a little.
struct Scene {
    data: DeviceData,
    pool: Pool,
    config: Config,
    view: View,
}

fn dataset() -> &'static Dataset {
    static DATA: OnceLock<Dataset> = OnceLock::new();
    DATA.get_or_init(|| {
        let train = synthetic::generate(5, synthetic::Split::Train, POOL);
        Dataset::new(&synthetic::SPEC, train, synthetic::generate(5, synthetic::Split::Test, 100))
    })
}

fn entry(id: &str) -> &'static Entry {
    METHODS.iter().find(|m| m.id == id).unwrap()
}

fn scene() -> Scene {
    let data = DeviceData::new(&Device::Cpu, dataset()).unwrap();
    let mut pool = Pool::new(dataset().train.labels.as_slice().into()).unwrap();
    let start = pool.start_set(Rng::new(10), LABELLED).unwrap();
    pool.reveal(&start).unwrap();
    let mut config = Config::base(&data.spec, &Preset::find("smoke").unwrap().1, Profile::Clean);
    config.train.epochs = 4;
    config.train.batch = 16;
    let view = View::plain(&Device::Cpu, &data.spec.mean, &data.spec.std).unwrap();
    Scene { data, pool, config, view }
}

impl Scene {
    fn trainer(&self, eval_batch: usize) -> Trainer<'_> {
        let recipe = &self.config.train;
        let (on_epoch, check) = (&|_: &_| Ok(()), &|| Ok(()));
        Trainer { data: &self.data, recipe, eval_batch, graphs: true, seed: 10, on_epoch, check, mixmatch: None }
    }

    /// The model after the start set: one for all methods with the plain recipe.
    fn model(&self, method: &mut dyn Method) -> Model {
        let labelled: Vec<_> = self.pool.labelled().iter().map(|id| (*id, self.pool.label(*id).unwrap())).collect();
        method.fit(&Round { trainer: &self.trainer(64), number: 0, labelled: &labelled }).unwrap().model
    }

    fn select(
        &self,
        method: &mut dyn Method,
        model: &Model,
        id: &str,
        batch: usize,
        round: u32,
        n: usize,
    ) -> Result<Vec<PoolIdx>> {
        let rng = Rng::new(10).at(Purpose::Select, round, 0).lane(lane_of(id));
        method.select(&Query::new(&self.pool, &self.trainer(batch), model, &self.view, round, rng), n)
    }
}

/// Methods whose n picks are one decision: fewer are not the first of more. (k-means has as many centres as picks; the
/// others spread picks over clusters or draw an arm.)
const NOT_GREEDY: &[&str] = &["cluster-margin", "kmeans", "ssl-diff2aug-kmeans", "typiclust"];

#[test]
fn every_method_keeps_the_contract() {
    let s = scene();
    let plain = s.model(&mut *(entry("random").make)(&s.config));
    let unlabelled = s.pool.unlabelled().to_vec();
    for m in METHODS {
        let make = || (m.make)(&s.config);
        let own = (!make().trains_plainly()).then(|| s.model(&mut *make()));
        let model = own.as_ref().unwrap_or(&plain);
        let before = checkpoint::to_bytes(&model.params).unwrap();
        let pick = |batch, n| s.select(&mut *make(), model, m.id, batch, 1, n).unwrap();
        let picks = pick(64, 25);
        check_picks(m.id, &picks, &unlabelled, 25).unwrap();
        assert_eq!(picks, pick(64, 25), "{}: the same seed gives the same ids", m.id);
        assert_eq!(picks, pick(7, 25), "{}: ids do not depend on the evaluation batch", m.id);
        if !NOT_GREEDY.contains(&m.id) {
            assert_eq!(picks[..9], pick(64, 9)[..], "{}: a smaller query is a prefix", m.id);
        }
        assert!(pick(64, 0).is_empty(), "{}: n = 0", m.id);
        let mut all = pick(64, POOL);
        all.sort_unstable();
        assert_eq!(all, unlabelled, "{}: n beyond the pool takes everything", m.id);
        let (mut method, mut restored) = (make(), make());
        assert_eq!(s.select(&mut *method, model, m.id, 64, 1, 5).unwrap().len(), 5);
        restored.restore(&method.save()).unwrap();
        let next = s.select(&mut *method, model, m.id, 64, 2, 5).unwrap();
        let again = s.select(&mut *restored, model, m.id, 64, 2, 5).unwrap();
        assert_eq!(next, again, "{}: restored state gives the same next picks", m.id);
        let text = serde_json::to_string(&method.save()).unwrap();
        restored.restore(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(restored.save(), method.save(), "{}: state survives the disk", m.id);
        assert_eq!(before, checkpoint::to_bytes(&model.params).unwrap(), "{} changes the model", m.id);
    }
}

#[test]
fn random_differs_by_seed_and_round_only() {
    let s = scene();
    let mut random = (entry("random").make)(&s.config);
    let model = s.model(&mut *random);
    let mut at = |round| s.select(&mut *random, &model, "random", 64, round, 10).unwrap();
    assert_ne!(at(1), at(2));
    assert_eq!(at(1), at(1));
}

/// METHODS 6.0, matrix E1, as logits.
fn e1() -> Tensor {
    let p: [[f32; 3]; 6] = [
        [0.5, 0.3, 0.2],
        [0.4, 0.35, 0.25],
        [0.9, 0.05, 0.05],
        [0.34, 0.33, 0.33],
        [0.49, 0.49, 0.02],
        [0.55, 0.225, 0.225],
    ];
    let logits: Vec<f32> = p.as_flattened().iter().map(|p| p.ln()).collect();
    Tensor::new(&Device::Cpu, [6, 3], &logits).unwrap()
}

/// METHODS 6.0, matrix E1, K = 2: examples 3 and 1.
#[test]
fn least_confidence_worked_example() {
    let scores = dalcore::ops::least_confidence(&e1()).unwrap();
    assert_eq!(dalcore::ops::top_k(&scores, 6).unwrap().to_vec::<u32>().unwrap(), [3, 1, 4, 0, 5, 2]);
    let wanted = [0.5f32, 0.6, 0.1, 0.66, 0.51, 0.45];
    for (s, u) in scores.to_vec::<f32>().unwrap().iter().zip(wanted) {
        assert!((1.0 - (-s).exp() - u).abs() < 1e-6, "{s} {u}");
    }
}

/// METHODS 6.0, matrix E1: the full order by entropy, K = 2: examples 3 and 1.
#[test]
fn entropy_worked_example() {
    let scores = dalcore::ops::entropy(&e1()).unwrap();
    assert_eq!(dalcore::ops::top_k(&scores, 6).unwrap().to_vec::<u32>().unwrap(), [3, 1, 0, 5, 4, 2]);
    let wanted = [1.029653f32, 1.080528, 0.394398, 1.098513, 0.777323, 1.000055];
    for (s, h) in scores.to_vec::<f32>().unwrap().iter().zip(wanted) {
        assert!((s - h).abs() < 1e-6, "{s} {h}");
    }
}

/// METHODS 6.5: two passes, four binary examples; K = 2 picks 0 and 3. (The scores are a test of the operation.)
#[test]
fn bald_worked_example() {
    let first = [0.9f32, 0.5, 0.9, 0.8, 0.1, 0.5, 0.9, 0.4];
    let p: Vec<f32> = first.iter().flat_map(|p| [*p, 1.0 - p]).collect();
    let p = Tensor::new(&Device::Cpu, [2, 4, 2], &p).unwrap();
    let scores = dalcore::ops::mc_scores(dalcore::ops::McRule::Bald, &p).unwrap();
    assert_eq!(dalcore::ops::top_k(&scores, 2).unwrap().to_vec::<u32>().unwrap(), [0, 3]);
}

/// METHODS 9.1: three passes, four examples, the votes 2 : 1, 3 : 0, 1 : 1 : 1 and 2 : 1; ties to the lowest id. The two
/// passes of 6.5 give the standard deviation .4.
#[test]
fn var_ratio_and_mean_std_worked_examples() {
    let vote = |c: usize| [0, 1, 2].map(|k| if k == c { 0.8f32 } else { 0.1 });
    let p: Vec<f32> = [[0, 1, 0, 2], [0, 1, 1, 2], [1, 1, 2, 0]].into_iter().flatten().flat_map(vote).collect();
    let scores = ops::mc_scores(ops::McRule::VarRatio, &Tensor::new(&Device::Cpu, [3, 4, 3], &p).unwrap()).unwrap();
    for (got, want) in scores.to_vec::<f32>().unwrap().iter().zip([1.0 / 3.0, 0.0, 2.0 / 3.0, 1.0 / 3.0]) {
        assert!((got - want).abs() < 1e-6, "{scores:?}");
    }
    assert_eq!(ops::top_k(&scores, 4).unwrap().to_vec::<u32>().unwrap(), [2, 0, 3, 1]);
    let p = Tensor::new(&Device::Cpu, [2, 1, 2], &[0.9f32, 0.1, 0.1, 0.9]).unwrap();
    let std = ops::mc_scores(ops::McRule::MeanStd, &p).unwrap().to_vec::<f32>().unwrap();
    assert!((std[0] - 0.4).abs() < 1e-6, "{std:?}");
}

/// METHODS 9.2, on a line, in tenths: 0, 1, 2 are of class 0; 10, 11 and 4 of class 1. Their nearest of another class are 4,
/// 3, 2, 8, 9 and 2 away, so that all balls are pure below 2, and four of six below 3. Balls of radius 1.5: row 1 covers
/// three, row 3 two, row 5 itself.
#[test]
fn probcover_worked_example() {
    let x = Tensor::new(&Device::Cpu, [6, 1], &[0.0f32, 0.1, 0.2, 1.0, 1.1, 0.4]).unwrap();
    let labels = [0, 0, 0, 1, 1, 1];
    let radius = |share| purity_radius(&x, &labels, 2, share).unwrap();
    for (share, want) in [(1.0, 0.2), (0.9, 0.2), (0.66, 0.3)] {
        assert!((radius(share) - want).abs() < 1e-5, "{share}: {}", radius(share));
    }
    let all = [0, 1, 2, 3, 4, 5];
    let cover = max_cover(&x, &[], &all, 6, 0.15).unwrap();
    assert_eq!((cover.ids, cover.gain), (vec![1, 3, 5, 0, 2, 4], vec![3, 2, 1, 0, 0, 0]));
    // Row 0 is labelled and covers 1 too: of the three row 2 is left, in the balls of 1 and 2.
    let cover = max_cover(&x, &[0], &all[1..], 3, 0.15).unwrap();
    assert_eq!((cover.ids, cover.gain), (vec![3, 1, 5], vec![2, 1, 1]));
}

/// A network that runs its stem when asked to and counts how often; one without dropout.
struct Counted {
    inner: Box<dyn Net>,
    stems: Rc<Cell<usize>>,
    dropout: Dropout,
}

impl Net for Counted {
    fn stem(&self, x: &Tensor, cx: &Ctx, taps: &mut Vec<Tensor>) -> Result<Tensor> {
        self.stems.set(self.stems.get() + x.dims()[0]);
        self.inner.stem(x, cx, taps)
    }
    fn rest(&self, stem: &Tensor, cx: &Ctx, taps: &mut Vec<Tensor>) -> Result<Tensor> {
        self.inner.rest(stem, cx, taps)
    }
    fn head(&self, embedding: &Tensor, cx: &Ctx) -> Result<Tensor> {
        self.inner.head(embedding, cx)
    }
    fn embedding_width(&self) -> usize {
        self.inner.embedding_width()
    }
    fn tap_widths(&self) -> Vec<usize> {
        self.inner.tap_widths()
    }
    fn dropout(&self) -> Dropout {
        self.dropout
    }
}

/// What no dropout reaches runs once per example however many passes there are; masks follow the id, not what else is
/// unlabelled; without dropout the method refuses.
#[test]
fn bald_passes() {
    let s = scene();
    let mut bald = (entry("bald").make)(&s.config);
    let (mut model, stems) = (s.model(&mut *bald), Rc::new(Cell::new(0)));
    model.net = Box::new(Counted { inner: model.net, stems: stems.clone(), dropout: Dropout::InTraining });
    let order = s.select(&mut *bald, &model, "bald", 64, 1, POOL).unwrap();
    assert_eq!(stems.get(), POOL - LABELLED);
    assert_ne!(order, s.select(&mut *bald, &model, "bald", 64, 2, POOL).unwrap(), "another round, other masks");

    let mut fewer = Pool::new(dataset().train.labels.as_slice().into()).unwrap();
    let gone: Vec<PoolIdx> = s.pool.labelled().iter().copied().chain(order[..100].iter().copied()).collect();
    fewer.reveal(&gone).unwrap();
    let rest = Scene { pool: fewer, ..scene() };
    assert_eq!(rest.select(&mut *bald, &model, "bald", 31, 1, POOL).unwrap(), order[100..]);

    let net = std::mem::replace(&mut model.net, Box::new(LeNet::new(&mut Layout::default(), 10)));
    model.net = Box::new(Counted { inner: net, stems, dropout: Dropout::Never });
    for m in ["bald", "mean-std", "var-ratio", "power-bald"] {
        let e = s.select(&mut *(entry(m).make)(&s.config), &model, m, 64, 1, 5).unwrap_err().to_string();
        assert!(e.contains("no dropout") && e.contains("entropy"), "{e}");
    }
    let mut config = s.config.clone();
    config.bald = dalcore::methods::bald::Settings::of(Profile::Repro);
    let picks = |net: &mut Model, dropout, id| {
        let inner = std::mem::replace(&mut net.net, Box::new(LeNet::new(&mut Layout::default(), 10)));
        net.net = Box::new(Counted { inner, stems: Rc::default(), dropout });
        s.select(&mut *(entry(id).make)(&config), net, id, 64, 1, 50).unwrap()
    };
    let entropy = picks(&mut model, Dropout::AtQueries, "entropy");
    assert_eq!(picks(&mut model, Dropout::AtQueries, "bald"), entropy, "repro ranks by entropy");
    assert_ne!(picks(&mut model, Dropout::InTraining, "bald"), entropy);
}

/// The three rules and power-bald with a large power see the same passes; the draw differs by round and follows β.
#[test]
fn power_bald_comes_to_bald() {
    let s = scene();
    let mut config = s.config.clone();
    let model = s.model(&mut *(entry("random").make)(&s.config));
    let mut picks = |id: &str, round, beta| {
        config.power_bald.beta = beta;
        s.select(&mut *(entry(id).make)(&config), &model, id, 64, round, 40).unwrap()
    };
    let bald = picks("bald", 1, 1.0);
    assert_eq!(picks("power-bald", 1, 1e6), bald);
    assert_ne!(picks("power-bald", 1, 1.0), bald);
    assert_ne!(picks("power-bald", 1, 1.0), picks("power-bald", 2, 1.0));
}

/// On a trained network: what is attacked first lies nearest to a boundary, the settings are obeyed, and `repro` differs
/// where it is meant to.
#[test]
fn adversarial_bim_on_a_network() {
    let s = scene();
    let model = s.model(&mut *(entry("random").make)(&s.config));
    let mut config = s.config.clone();
    let mut picks = |eps, cap| {
        (config.adversarial_bim.eps, config.adversarial_bim.cap) = (eps, cap);
        s.select(&mut *(entry("adversarial-bim").make)(&config), &model, "adversarial-bim", 50, 1, POOL).unwrap()
    };
    // No image flips by so little: all are equally far, the lowest id first.
    assert_eq!(picks(1e-30, 3), s.pool.unlabelled());
    // The rank by entropy, on average, of the first third by attack: chance would be a half, give or take .027.
    let order = picks(0.05, 100);
    let confident = s.select(&mut *(entry("entropy").make)(&s.config), &model, "entropy", 64, 1, POOL).unwrap();
    let place = |id: &PoolIdx| confident.iter().position(|c| c == id).unwrap();
    let first = order.len() / 3;
    let mean = order[..first].iter().map(place).sum::<usize>() as f64 / first as f64;
    assert!(mean < 0.42 * order.len() as f64, "mean rank {mean} of {}", order.len());
    for (key, value) in [("eps", "0.0"), ("eps", "-1.0"), ("cap", "0"), ("cap", "2000000"), ("loss", "'cee'")] {
        let setting =
            (format!("adversarial-bim.{key}"), format!("v = {value}").parse::<toml::Table>().unwrap()["v"].clone());
        let e = s.config.clone().with(&[setting]).unwrap_err().to_string();
        assert!(e.contains(&format!("adversarial-bim.{key}")), "{e}");
    }
    let repro = dalcore::methods::adversarial_bim::Settings::of(Profile::Repro);
    assert!(!repro.fallback && repro != s.config.adversarial_bim && repro.cap == 100 && repro.eps == 0.05);
}

/// As many clusters as there are labels after the query: each pick has one of its own, the largest without a label first.
#[test]
fn typiclust_takes_one_of_each_cluster() {
    let s = scene();
    let model = s.model(&mut *(entry("random").make)(&s.config));
    let picks = s.select(&mut *(entry("typiclust").make)(&s.config), &model, "typiclust", 64, 1, 40).unwrap();
    let rng = Rng::new(10).at(Purpose::Select, 1, 0).lane(lane_of("typiclust"));
    let q_trainer = s.trainer(64);
    let q = Query::new(&s.pool, &q_trainer, &model, &s.view, 1, rng);
    let x = ops::normalize_rows(q.embeddings().unwrap()).unwrap();
    let stops = Stops { restarts: 1, iterations: 100, tolerance: 1e-4 };
    let clusters = kmeans(&x, LABELLED + 40, stops, rng).unwrap().labels.to_vec::<u32>().unwrap();
    let size = |c: u32, of: &[PoolIdx]| of.iter().filter(|i| clusters[i.index()] == c).count();
    let all: Vec<PoolIdx> = (0..POOL as u32).map(PoolIdx).collect();
    let mut seen = s.pool.labelled().to_vec();
    let mut before = (0, usize::MAX);
    for pick in picks {
        let c = clusters[pick.index()];
        let place = (size(c, &seen), size(c, &all));
        assert!(place.0 > before.0 || (place.0 == before.0 && place.1 <= before.1), "{place:?} after {before:?}");
        before = place;
        seen.push(pick);
    }
    assert_eq!(before.0, 0, "no cluster is asked twice while another has no label");
    for (set, why) in [("clusters=0", "at least 1"), ("neighbours=32", "between 1 and 31"), ("neighbours=0", "31")] {
        let e = s.config.clone().with(&[parse_setting(&format!("typiclust.{set}")).unwrap()]).unwrap_err();
        assert!(e.is_misuse() && e.to_string().contains(why), "{e}");
    }
}

/// METHODS 6.0, matrix E1: the full order by margin, K = 2: examples 4 and 3.
#[test]
fn margin_worked_example() {
    let scores = dalcore::ops::margin(&e1()).unwrap();
    assert_eq!(dalcore::ops::top_k(&scores, 6).unwrap().to_vec::<u32>().unwrap(), [4, 3, 1, 0, 5, 2]);
}

/// Confident rows keep their order where 1 − p_max would be exactly 0 for all of them.
#[test]
fn least_confidence_near_certainty() {
    let logits: Vec<f32> = (0..20).flat_map(|i| [30.0 + i as f32, 0.0]).collect();
    let scores = dalcore::ops::least_confidence(&Tensor::new(&Device::Cpu, [20, 2], &logits).unwrap()).unwrap();
    assert_eq!(dalcore::ops::top_k(&scores, 20).unwrap().to_vec::<u32>().unwrap(), (0..20).collect::<Vec<u32>>());
}

#[test]
fn a_nan_embedding_or_score_is_named() {
    let s = scene();
    // None of these asks the model for anything.
    for m in METHODS.iter().filter(|m| !["random", "ssl-random", "vaal"].contains(&m.id)) {
        let mut method = (m.make)(&s.config);
        let mut model = s.model(&mut *method);
        let mut values = model.params.to_host().unwrap().into_iter().map(|(_, v)| v).collect::<Vec<_>>();
        values[0][0] = f32::NAN;
        let mut values = values.into_iter();
        model.params.load(|_| Ok(values.next().unwrap())).unwrap();
        let e = s.select(&mut *method, &model, m.id, 64, 1, 5).unwrap_err().to_string();
        assert!(e.contains("NaN") || e.contains("finite"), "{}: {e}", m.id);
    }
}

#[test]
fn the_table_is_sound() {
    for (i, m) in METHODS.iter().enumerate() {
        assert!(METHODS[..i].iter().all(|o| o.id != m.id && o.paper_name != m.paper_name));
        assert!([m.about, m.needs, m.costs, m.remembers].iter().all(|text| !text.is_empty()), "{}", m.id);
        assert_eq!(dalcore::methods::find(m.paper_name).unwrap().id, m.id);
    }
    assert!(dalcore::methods::find("corset").err().unwrap().to_string().contains("did you mean 'coreset'"));
}

/// MCADL keeps the accuracy of each class for its next query; the score beside the features of CoreGCN counts.
#[test]
fn settings_and_state_have_an_effect() {
    let mut s = scene();
    let model = s.model(&mut *(entry("random").make)(&s.config));
    let mut mcadl = (entry("mcadl").make)(&s.config);
    assert_eq!(mcadl.save(), serde_json::json!([]));
    s.select(&mut *mcadl, &model, "mcadl", 64, 1, 5).unwrap();
    let classes = mcadl.save().as_array().unwrap().iter().map(|a| a.as_f64().unwrap()).collect::<Vec<_>>();
    assert!(classes.len() == 10 && classes.iter().any(|a| *a > 0.0), "{classes:?}");

    let picks =
        |s: &Scene| s.select(&mut *(entry("core-gcn").make)(&s.config), &model, "core-gcn", 64, 1, 150).unwrap();
    let (alone, score) = (picks(&s), !s.config.core_gcn.append_score);
    s.config.core_gcn.append_score = score;
    assert_ne!(picks(&s), alone);
}

/// CoreGCN starts from every labelled node: with two of them, its picks are those of k-center from both, and other ones
/// without either.
#[test]
fn core_gcn_starts_from_all_that_is_labelled() {
    let s = scene();
    let model = s.model(&mut *(entry("random").make)(&s.config));
    let mut pool = Pool::new(dataset().train.labels.as_slice().into()).unwrap();
    let start = pool.start_set(Rng::new(10), 2).unwrap();
    pool.reveal(&start).unwrap();
    let (trainer, rng) = (s.trainer(64), Rng::new(3));
    let q = Query::new(&pool, &trainer, &model, &s.view, 1, rng);
    let picks = (entry("core-gcn").make)(&s.config).select(&q, 60).unwrap();
    let nodes = ops::concat_rows(&[q.features().unwrap(), q.labelled_features().unwrap()]).unwrap();
    let rng = Rng::new(10).at(Purpose::Gcn, 1, 0);
    let training = s.config.core_gcn.train;
    let [hidden, _] = gcn::learn(&nodes, POOL - 2, &training, rng, true, &|| Ok(())).unwrap();
    let (m, candidates) = (POOL as u32 - 2, (0..POOL as u32 - 2).collect::<Vec<_>>());
    let from = |rows: &[u32]| {
        let found = kcenter(&hidden, rows, &candidates, 60).unwrap().ids;
        found.into_iter().map(|row| q.unlabelled()[row as usize]).collect::<Vec<_>>()
    };
    assert_eq!(picks, from(&[m, m + 1]));
    assert!(picks != from(&[m]) && picks != from(&[m + 1]));
}

/// The largest predictions first; as in the reference code, the smallest of predictions that belong to other examples.
#[test]
fn learning_loss_takes_the_largest_predictions() {
    let mut s = scene();
    let picks = |s: &Scene| {
        let mut method = (entry("learning-loss").make)(&s.config);
        let model = s.model(&mut *method);
        let picks = s.select(&mut *method, &model, "learning-loss", 64, 1, 340).unwrap();
        (model, picks)
    };
    let (model, by_loss) = picks(&s);
    let head = LossHead::new(&model.net.tap_widths(), None, &mut Model::plan(&s.data.spec).unwrap().0);
    let [losses] = sweep(
        &s.data.train,
        &(0..POOL as u32).collect::<Vec<_>>(),
        Pass { view: &s.view, batch: 50, graphs: true },
        [1],
        |x, clock| {
            let cx = model.context(clock).with_taps();
            let y = head.forward(&model.net.forward(x, &cx)?.taps, &cx, &cx)?;
            Ok([y.reshape([y.len(), 1])?])
        },
    )
    .unwrap();
    let losses = losses.to_vec::<f32>().unwrap();
    assert!(by_loss.windows(2).all(|p| losses[p[0].index()] >= losses[p[1].index()]));
    assert!(losses[by_loss[0].index()] > losses[by_loss[339].index()]);

    s.config.learning_loss.reference_bugs = true;
    let (model, shuffled) = picks(&s);
    assert_eq!(model.params.count(), 21_840 + 257);
    let again = picks(&s).1;
    assert!(shuffled == again && shuffled != by_loss);
}

/// METHODS 6.14: a divergence, and what a discriminator and its opponent lose by verdicts of .9 and .2.
#[test]
fn vaal_worked_example() {
    let row = |v: &[f32]| Tensor::new(&Device::Cpu, [1, v.len()], v).unwrap();
    let near = |t: Tensor, want: f64| assert!((t.to_f64().unwrap()[0] - want).abs() < 1e-6, "{t:?} {want}");
    near(ops::gauss_kl(&row(&[1.0, 0.0]), &row(&[0.0, 2f32.ln()])).unwrap(), 0.653426);
    let bce = |p: f32, t: f32| ops::bce_with_logits(&row(&[(p / (1.0 - p)).ln()]), &row(&[t])).unwrap();
    near(ops::add(&bce(0.9, 1.0), &bce(0.2, 0.0)).unwrap(), 0.328504);
    near(ops::add(&bce(0.9, 1.0), &bce(0.2, 1.0)).unwrap(), 1.714798);
}

/// The smallest verdicts first, of a game that is another one in every round and with every setting.
#[test]
fn vaal_takes_what_looks_least_labelled() {
    let mut s = scene();
    s.config.vaal.epochs = 2;
    let picks = |s: &Scene, round| {
        let model = Model::fresh(&s.data, 1, 0).unwrap();
        s.select(&mut *(entry("vaal").make)(&s.config), &model, "vaal", 64, round, POOL).unwrap()
    };
    let by_verdict = picks(&s, 3);
    let rules = Adversarial {
        sizes: Sizes::Linear { image: [28, 28, 1] },
        sigmoid: false,
        deep: false,
        kl: Kl::Sum,
        adam: AdamRule::default(),
        batch: 16,
    };
    let trainer = s.trainer(64);
    let mut game = Game::new(rules, &Device::Cpu, 10, 3).unwrap();
    game.train(&trainer, 3, [s.pool.labelled(), s.pool.unlabelled()], 2).unwrap();
    let ids: Vec<u32> = (0..POOL as u32).collect();
    let pass = Pass { view: &s.view, batch: 50, graphs: true };
    let [verdicts] = sweep(&s.data.train, &ids, pass, [1], |x, clock| Ok([game.verdict(x, clock)?])).unwrap();
    let verdicts = verdicts.to_vec::<f32>().unwrap();
    assert!(by_verdict.windows(2).all(|p| verdicts[p[0].index()] <= verdicts[p[1].index()]));
    assert!(verdicts[by_verdict[0].index()] < verdicts[by_verdict[POOL - LABELLED - 1].index()]);

    let mut seen = vec![by_verdict, picks(&s, 4)];
    let settings: [fn(&mut Config); 5] = [
        |c| c.vaal.kl = Kl::Mean,
        |c| c.vaal.discriminator = 5,
        |c| c.vaal.sigmoid = true,
        |c| c.vaal.epochs = 0,
        // More than are labelled: drawn with repetition.
        |c| c.train.batch = LABELLED + 20,
    ];
    for set in settings {
        let mut other = scene();
        other.config.vaal.epochs = 2;
        set(&mut other.config);
        seen.push(picks(&other, 3));
    }
    for (i, picks) in seen.iter().enumerate() {
        assert!(!seen[..i].contains(picks), "{i}");
    }
}

/// A loss that is not finite stops the game by name, and so does a user.
#[test]
fn vaal_can_be_stopped() {
    let mut s = scene();
    let model = Model::fresh(&s.data, 1, 0).unwrap();
    let stop = || Err(Error::Interrupted { resume: "again".into() });
    let trainer = Trainer { check: &stop, ..s.trainer(64) };
    let rng = Rng::new(10).at(Purpose::Select, 1, 0).lane(lane_of("vaal"));
    let query = Query::new(&s.pool, &trainer, &model, &s.view, 1, rng);
    let stopped = (entry("vaal").make)(&s.config).select(&query, 5);
    assert!(matches!(stopped, Err(Error::Interrupted { .. })));

    s.data.spec.std = vec![1e-30].into();
    let e = s.select(&mut *(entry("vaal").make)(&s.config), &model, "vaal", 64, 1, 5).unwrap_err().to_string();
    assert!(e.contains("auto-encoder") && e.contains("round 1, epoch 0, step 0"), "{e}");

    let refused = |set: &str| s.config.clone().with(&[parse_setting(set).unwrap()]).unwrap_err().to_string();
    assert!(refused("vaal.discriminator=4").contains("3 or 5"));
    assert!(refused("vaal.kl=max").contains("vaal.kl") && refused("vaal.epochs=1000001").contains("vaal.epochs"));
}

/// An arm takes the whole batch; which one follows the round; over the rounds what is drawn is what pays.
#[test]
fn albl_is_one_of_its_arms() {
    let s = scene();
    let mut albl = (entry("albl").make)(&s.config);
    let model = s.model(&mut *albl);
    let mut drawn = [0, 0];
    for round in 1..=40 {
        let picks = s.select(&mut *albl, &model, "albl", 64, round, 30).unwrap();
        let arms = ["least-confidence", "coreset"]
            .map(|id| s.select(&mut *(entry(id).make)(&s.config), &model, id, 64, round, 30).unwrap());
        assert!(arms.contains(&picks) && arms[0] != arms[1]);
        drawn[usize::from(picks == arms[1])] += 1;
        let state = albl.save();
        assert_eq!(state["queried"].as_array().unwrap().len(), 30 * round as usize);
        assert_eq!(state["last"][0], u32::from(picks == arms[1]));
        assert_eq!(
            state["last"][1],
            state["queried"][30 * round as usize - 1][1],
            "it was drawn with that probability"
        );
    }
    assert!(drawn[0] > 0 && drawn[1] > 0, "{drawn:?}");
    for bad in ["{}", r#"{"weights":[1.0],"last":null,"queried":[]}"#] {
        assert!(albl.restore(&serde_json::from_str(bad).unwrap()).is_err());
    }
}

/// METHODS 6.15: uniform over three classes and (.9, .05, .05); with verdicts of .2 and .5 the second, sure but
/// unlabelled-looking, comes first.
#[test]
fn waal_worked_example() {
    let p = [1.0f32 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.9, 0.05, 0.05];
    let logits = Tensor::new(&Device::Cpu, [2, 3], &p.map(f32::ln)).unwrap();
    let verdicts = Tensor::new(&Device::Cpu, [2, 1], &[0.2f32, 0.5]).unwrap();
    for (weight, want) in [(0.0, [2.599_345, 5.167_37]), (10.0, [0.599_345, 0.167_37])] {
        let scores = ops::uniform_scores(&logits, &verdicts, weight).unwrap().to_vec::<f32>().unwrap();
        assert!(scores.iter().zip(want).all(|(s, w)| (s - w).abs() < 2e-6), "{scores:?} {want:?}");
    }
}

/// What `waal` trains on a scene, with the labels of the first `labelled` unlabelled examples beside those of its own.
fn waal_fit(s: &Scene, trainer: &Trainer, labelled: &[PoolIdx]) -> Result<Fit> {
    let labels = &dataset().train.labels;
    let labelled: Vec<_> = labelled.iter().map(|id| (*id, labels[id.index()])).collect();
    (entry("waal").make)(&s.config).fit(&Round { trainer, number: 2, labelled: &labelled })
}

fn waal_weights(fit: &Fit) -> Vec<f32> {
    fit.model.params.to_host().unwrap().into_iter().flat_map(|(_, v)| v).collect()
}

/// The smallest scores first, made of the logits and the critic that was trained with them, with dropout off.
#[test]
fn waal_takes_the_smallest_scores() {
    let s = scene();
    let fit = waal_fit(&s, &s.trainer(64), s.pool.labelled()).unwrap();
    assert_eq!(fit.model.params.count(), 21_840 + 16_101);
    assert!(fit.loss.windows(2).all(|l| l[1] < l[0]), "{:?}", fit.loss);
    let order = s.select(&mut *(entry("waal").make)(&s.config), &fit.model, "waal", 64, 1, POOL).unwrap();
    let (mut layout, net) = Model::plan(&s.data.spec).unwrap();
    let critic = Critic::new(&mut layout, &*net);
    let ids: Vec<u32> = (0..POOL as u32).collect();
    let pass = Pass { view: &s.view, batch: 50, graphs: true };
    let [logits, verdicts] = sweep(&s.data.train, &ids, pass, [10, 1], |x, clock| {
        let mut cx = fit.model.context(clock);
        let [_, seen] = critic.features(&*net, x, &mut cx)?;
        assert_eq!(seen.dims()[1], 320);
        Ok([fit.model.output(x, clock)?.logits, critic.score(&seen, 0, &cx)?])
    })
    .unwrap();
    let log_p = ops::log_softmax(&logits).unwrap().to_f64().unwrap();
    let verdicts = verdicts.to_f64().unwrap();
    let score = |id: &PoolIdx| {
        let row = &log_p[id.index() * 10..][..10];
        let (two, one) = (row.iter().map(|v| v * v).sum::<f64>().sqrt(), row.iter().map(|v| v.abs()).sum::<f64>());
        0.5 * two + 0.5 * one - 10.0 * verdicts[id.index()]
    };
    assert!(order.windows(2).all(|p| score(&p[0]) <= score(&p[1]) + 1e-5));
    let ends = [0, POOL - LABELLED - 1].map(|i| score(&order[i]));
    assert!(ends[0] < ends[1] - 0.5, "{ends:?}");
    let spread = |of: &[f64]| of.iter().fold(0.0f64, |m, v| m.max(*v)) - of.iter().fold(1.0f64, |m, v| m.min(*v));
    assert!(spread(&verdicts) > 1e-3, "the critic tells images apart");
}

/// Two epochs by hand: pairs from passes over both lists, a tail, the network's half before the critic's, each at a step of
/// its own; and both parts are kept.
#[test]
fn waal_is_its_steps() {
    let mut s = scene();
    (s.config.train.epochs, s.config.train.milestones) = (2, vec![1]);
    let fit = waal_fit(&s, &s.trainer(64), s.pool.labelled()).unwrap();

    let recipe = Recipe { lr: s.config.waal.lr, ..s.config.train.clone() };
    let trainer = Trainer { recipe: &recipe, ..s.trainer(64) };
    let stakes = Stakes { alpha: s.config.waal.alpha, gamma_cap: None, sign: Sign::Plus };
    let sets = [s.pool.labelled(), s.pool.unlabelled()];
    let mut duel = Duel::new(stakes, &trainer, 2, sets.map(<[_]>::len)).unwrap();
    let (device, pixels, view) = (Device::Cpu, &s.data.train.pixels, trainer.train_view(2).unwrap().each_step());
    let labels = Buf::from_host(&device, &dataset().train.labels).unwrap();
    let clock = Rc::new(Clock::new(&device).unwrap());
    let mut losses = Vec::new();
    for epoch in 0..2 {
        let rng = Rng::new(10).at(Purpose::Shuffle, 2, epoch);
        let pass = |set: usize, p: u32| {
            let order = rng.lane(2 * p + set as u32 + 1).permutation(sets[set].len());
            order.into_iter().map(move |i| sets[set][i as usize].0)
        };
        let orders = [(0..6).flat_map(|p| pass(0, p)).take(340).collect(), pass(1, 0).collect::<Vec<u32>>()];
        let [l, u] = orders.map(|ids| Tensor::new(&device, [340], &ids).unwrap());
        clock.start(44 * epoch, epoch, if epoch == 0 { 0.01 } else { 0.001 }).unwrap();
        let mut sum = 0.0;
        for n in [16; 21].into_iter().chain([4]) {
            let x = [&l, &u].map(|order| ops::gather_images(pixels, order, &clock, n, &view).unwrap());
            let y = ops::gather_labels(&labels, &l, &clock, n).unwrap();
            let loss = duel.network_step([&x[0], &x[1]], &y, &clock).unwrap();
            sum += loss.to_f64().unwrap()[0];
            clock.advance(0).unwrap();
            duel.critic_step([&x[0], &x[1]], &clock).unwrap();
            clock.advance(n).unwrap();
        }
        losses.push(sum);
    }
    assert_eq!(fit.loss, losses);
    let parts = [duel.training.model.params.to_host().unwrap(), duel.critic_params.to_host().unwrap()].concat();
    for ((slot, got), (want_slot, want)) in fit.model.params.to_host().unwrap().iter().zip(&parts) {
        assert!(slot.name == want_slot.name && got == want, "{}", slot.name);
    }
}

/// Every setting and every round is another training, the same one gives the same bytes; a smaller batch than the
/// lists, and more labelled than unlabelled.
#[test]
fn waal_trains_by_its_settings() {
    let s = scene();
    let weights = |set: fn(&mut Config), labelled: &[PoolIdx]| {
        let mut s = scene();
        s.config.train.epochs = 1;
        set(&mut s.config);
        waal_weights(&waal_fit(&s, &s.trainer(64), labelled).unwrap())
    };
    let few = s.pool.labelled();
    let first = weights(|_| (), few);
    assert_eq!(first, weights(|_| (), few));
    let settings: [fn(&mut Config); 8] = [
        |c| c.waal.lr = 0.02,
        |c| c.waal.alpha = 0.02,
        |c| c.waal.gamma_cap = 0.01,
        |c| c.waal.penalty = Sign::Minus,
        |c| c.train.grad_clamp = 0.0,
        |c| c.train.weight_decay = 0.0,
        |c| c.train.momentum = 0.0,
        |c| c.train.batch = 15,
    ];
    let mut seen = vec![first];
    for set in settings {
        let other = weights(set, few);
        assert!(other.iter().all(|w| w.is_finite()) && !seen.contains(&other));
        seen.push(other);
    }
    // 60 of 340 are below this limit, and a learning rate of the plain training changes nothing.
    assert_eq!(seen[0], weights(|c| c.waal.gamma_cap = 0.2, few));
    assert_eq!(seen[0], weights(|c| c.train.lr = 9.0, few));
    let all: Vec<PoolIdx> = s.pool.unlabelled().iter().chain(few).copied().collect();
    let mut most = all[..390].to_vec();
    most.sort_unstable();
    assert!(weights(|_| (), &most).iter().all(|w| w.is_finite()));
    assert_ne!(weights(|_| (), &most), weights(|c| c.waal.gamma_cap = 1.0, &most));
}

/// With nothing left to look like, the network is trained as ever, at this method's rate.
#[test]
fn waal_without_unlabelled_images_is_plain_training() {
    let mut s = scene();
    s.config.train.epochs = 2;
    let mut all: Vec<PoolIdx> = s.pool.unlabelled().iter().chain(s.pool.labelled()).copied().collect();
    all.sort_unstable();
    let fit = waal_fit(&s, &s.trainer(64), &all).unwrap();
    s.config.train.lr = s.config.waal.lr;
    let labelled: Vec<_> = all.iter().map(|id| (*id, dataset().train.labels[id.index()])).collect();
    let plain = s.trainer(64).fit(2, &labelled).unwrap();
    assert_eq!((&fit.loss, &fit.correct), (&plain.loss, &plain.correct));
    assert_eq!(waal_weights(&fit)[..21_840], waal_weights(&plain));
    let e = waal_fit(&s, &s.trainer(64), &[]).err().unwrap().to_string();
    assert!(e.contains("label some first"), "{e}");
}

/// A user stops it after an epoch; a loss that is not finite stops it by name; impossible settings are refused.
#[test]
fn waal_can_be_stopped() {
    let mut s = scene();
    let seen = Cell::new(0);
    let stop = |_: &_| {
        seen.set(seen.get() + 1);
        if seen.get() == 2 { Err(Error::Interrupted { resume: "again".into() }) } else { Ok(()) }
    };
    let trainer = Trainer { on_epoch: &stop, ..s.trainer(64) };
    assert!(matches!(waal_fit(&s, &trainer, s.pool.labelled()), Err(Error::Interrupted { .. })));
    assert_eq!(seen.get(), 2);

    let refused = |set: &str| s.config.clone().with(&[parse_setting(set).unwrap()]).unwrap_err().to_string();
    for (set, key) in [
        ("waal.lr=-1", "waal.lr"),
        ("waal.lr=inf", "waal.lr"),
        ("waal.alpha=nan", "waal.alpha"),
        ("waal.gamma_cap=-0.5", "waal.gamma_cap"),
        ("waal.weight=inf", "waal.weight"),
        ("waal.penalty=none", "waal.penalty"),
    ] {
        assert!(refused(set).contains(key), "{}", refused(set));
    }
    s.config.waal.lr = 1e30;
    let e = waal_fit(&s, &s.trainer(64), s.pool.labelled()).err().unwrap().to_string();
    assert!(
        e.contains("loss of the critic") && e.contains("round 2, epoch 0, step 0") && e.contains("waal.lr=1000"),
        "{e}"
    );

    let config = |profile| Config::base(&s.data.spec, &Preset::find("paper").unwrap().1, profile).waal;
    assert_eq!((config(Profile::Clean).penalty, config(Profile::Repro).penalty), (Sign::Plus, Sign::Minus));
    let cifar = Config::base(&dalcore::data::cifar::CIFAR10, &Preset::find("paper").unwrap().1, Profile::Clean);
    assert_eq!((config(Profile::Clean).lr, cifar.waal.lr), (0.01, 0.1));
}

/// Views by (seed, round, view, id): not by the batch, and not those of training.
#[test]
fn random_views_belong_to_the_example() {
    let s = scene();
    let model = s.model(&mut *(entry("ssl-random").make)(&s.config));
    let look = |batch, round, view| {
        let trainer = s.trainer(batch);
        let q = Query::new(&s.pool, &trainer, &model, &s.view, round, Rng::new(10));
        (q.augmented_logits(view).unwrap().to_vec::<f32>().unwrap(), q.logits().unwrap().to_vec::<f32>().unwrap())
    };
    let (view, clean) = look(64, 1, 0);
    assert_ne!(view, clean);
    assert_eq!(view, look(7, 1, 0).0);
    assert_ne!(view, look(64, 1, 1).0);
    assert_ne!(view, look(64, 2, 0).0);
}

/// Where images are only flipped: both views once are the limit of many draws. Without any change of the images there is
/// nothing to compare.
#[test]
fn consistency_of_flips_alone() {
    let mut s = scene();
    (s.config.train.crop_pad, s.config.train.flip) = (0, true);
    let model = s.model(&mut *(entry("ssl-consistency").make)(&s.config));
    let mut pick = |exact, views| {
        s.config.ssl_consistency.exact_flips = exact;
        s.config.ssl_consistency.views = views;
        s.select(&mut *(entry("ssl-consistency").make)(&s.config), &model, "ssl-consistency", 64, 1, 40).unwrap()
    };
    let exact = pick(true, 1);
    let drawn = pick(false, 400);
    let common = exact.iter().filter(|id| drawn.contains(id)).count();
    assert!(common >= 34, "{common} of 40");
    assert_eq!(pick(false, 1), s.pool.unlabelled()[..40], "one view does not vary");
    s.config.train.flip = false;
    let mut method = (entry("ssl-consistency").make)(&s.config);
    let e = s.select(&mut *method, &model, "ssl-consistency", 64, 1, 5).unwrap_err();
    assert!(e.to_string().contains("train.crop_pad"), "{e}");
}

/// The quotas of the clusters are kept, and in each the smallest margins are taken.
#[test]
fn diff2aug_kmeans_takes_its_quota_of_every_cluster() {
    let s = scene();
    let model = s.model(&mut *(entry("ssl-random").make)(&s.config));
    let mut method = (entry("ssl-diff2aug-kmeans").make)(&s.config);
    let rng = Rng::new(10).at(Purpose::Select, 1, 0).lane(lane_of("ssl-diff2aug-kmeans"));
    let trainer = s.trainer(64);
    let q = Query::new(&s.pool, &trainer, &model, &s.view, 1, rng);
    let picks = method.select(&q, 50).unwrap();
    let stops = Stops { restarts: 3, iterations: 100, tolerance: 1e-4 };
    let labels = kmeans(q.features().unwrap(), 20, stops, rng).unwrap().labels.to_vec::<u32>().unwrap();
    let u = ops::margin_of_mean(q.logits().unwrap(), &q.augmented_logits(0).unwrap()).unwrap().to_vec::<f32>().unwrap();
    let place = |id: &PoolIdx| q.unlabelled().binary_search(id).unwrap();
    for cluster in 0..20 {
        let of: Vec<usize> = (0..labels.len()).filter(|i| labels[*i] == cluster).collect();
        let taken: Vec<usize> = picks.iter().map(place).filter(|i| labels[*i] == cluster).collect();
        let floor = 50 * of.len() / labels.len();
        assert!(taken.len() == floor || taken.len() == floor + 1, "cluster {cluster}");
        let least = taken.iter().map(|i| u[*i]).fold(f32::INFINITY, f32::min);
        assert!(of.iter().all(|i| taken.contains(i) || u[*i] <= least), "cluster {cluster}");
    }
}

/// A trainer that is not the method's own is part of the run's name; some cannot be combined.
#[test]
fn trainers_and_methods() {
    use dalcore::methods::{Run, find, paper_name};
    use dalcore::train::TrainerKind::{MixMatch, Supervised};
    let config = scene().config;
    let with = |id: &str, trainer| Run::with(find(id).unwrap(), trainer, &config);
    assert_eq!(with("badge", MixMatch).unwrap().id(), "badge+mixmatch");
    assert_eq!(paper_name("badge+mixmatch"), "BadgeSampling + mixmatch");
    assert_eq!(with("badge", Supervised).unwrap().id(), "badge");
    assert_eq!(with("ssl-random", MixMatch).unwrap().id(), "ssl-random");
    for (id, trainer, why) in [
        ("ssl-random", Supervised, "defined with mixmatch"),
        ("learning-loss", MixMatch, "training of its own"),
        ("waal", MixMatch, "training of its own"),
    ] {
        let e = with(id, trainer).err().unwrap().to_string();
        assert!(e.contains(why), "{e}");
    }
}
