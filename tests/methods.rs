//! The conformance suite: what every row of `METHODS` must do, and the worked examples of the rules.

use std::sync::OnceLock;

use dalcore::Result;
use dalcore::bench::config::{Config, Preset, Profile};
use dalcore::data::{Dataset, Pool, PoolIdx, synthetic};
use dalcore::device::Device;
use dalcore::methods::{METHODS, Query, check_picks};
use dalcore::nn::checkpoint;
use dalcore::ops::View;
use dalcore::rng::{Purpose, Rng, lane_of};
use dalcore::tensor::Tensor;
use dalcore::train::{DeviceData, Model, Pass, Trainer};

const POOL: usize = 400;
const LABELLED: usize = 60;

/// A small pool with a model that has learned a little.
struct Scene {
    data: DeviceData,
    pool: Pool,
    model: Model,
    view: View,
}

fn dataset() -> &'static Dataset {
    static DATA: OnceLock<Dataset> = OnceLock::new();
    DATA.get_or_init(|| {
        let train = synthetic::generate(5, synthetic::Split::Train, POOL);
        Dataset::new(&synthetic::SPEC, train, synthetic::generate(5, synthetic::Split::Test, 100))
    })
}

fn scene() -> Scene {
    let data = DeviceData::new(&Device::Cpu, dataset()).unwrap();
    let mut pool = Pool::new(dataset().train.labels.as_slice().into()).unwrap();
    let start = pool.start_set(Rng::new(10), LABELLED).unwrap();
    pool.reveal(&start).unwrap();
    let mut recipe = Config::base(&data.spec, &Preset::find("smoke").unwrap().1, Profile::Clean).train;
    recipe.epochs = 4;
    recipe.batch = 16;
    let labelled: Vec<_> = pool.labelled().iter().map(|id| (*id, pool.label(*id).unwrap())).collect();
    let trainer =
        Trainer { data: &data, recipe: &recipe, eval_batch: 64, graphs: true, seed: 10, on_epoch: &|_| Ok(()) };
    let model = trainer.fit(0, &labelled).unwrap().model;
    let view = trainer.plain_view().unwrap();
    Scene { data, pool, model, view }
}

impl Scene {
    fn query(&self, id: &str, batch: usize, round: u32) -> Query<'_> {
        let rng = Rng::new(10).at(Purpose::Select, round, 0).lane(lane_of(id));
        Query::new(&self.pool, &self.data.train, &self.model, Pass { view: &self.view, batch, graphs: true }, rng)
    }

    fn pick(&self, id: &str, batch: usize, n: usize) -> Result<Vec<PoolIdx>> {
        let entry = METHODS.iter().find(|m| m.id == id).unwrap();
        (entry.make)().select(&self.query(id, batch, 1), n)
    }
}

#[test]
fn every_method_keeps_the_contract() {
    let s = scene();
    let before = checkpoint::to_bytes(&s.model.params).unwrap();
    let unlabelled = s.pool.unlabelled().to_vec();
    for m in METHODS {
        let picks = s.pick(m.id, 64, 25).unwrap();
        check_picks(m.id, &picks, &unlabelled, 25).unwrap();
        assert_eq!(picks, s.pick(m.id, 64, 25).unwrap(), "{}: the same seed gives the same ids", m.id);
        assert_eq!(picks, s.pick(m.id, 7, 25).unwrap(), "{}: ids do not depend on the evaluation batch", m.id);
        assert_eq!(picks[..9], s.pick(m.id, 64, 9).unwrap()[..], "{}: a smaller query is a prefix", m.id);
        assert!(s.pick(m.id, 64, 0).unwrap().is_empty(), "{}: n = 0", m.id);
        let mut all = s.pick(m.id, 64, POOL).unwrap();
        all.sort_unstable();
        assert_eq!(all, unlabelled, "{}: n beyond the pool takes everything", m.id);
        let mut method = (m.make)();
        let first = method.select(&s.query(m.id, 64, 1), 5).unwrap();
        let mut restored = (m.make)();
        restored.restore(&method.save()).unwrap();
        let (next, again) =
            (method.select(&s.query(m.id, 64, 2), 5).unwrap(), restored.select(&s.query(m.id, 64, 2), 5).unwrap());
        assert_eq!(next, again, "{}: restored state gives the same next picks", m.id);
        assert_eq!(first.len(), 5);
    }
    assert_eq!(before, checkpoint::to_bytes(&s.model.params).unwrap(), "no method changes the model");
}

#[test]
fn random_differs_by_seed_and_round_only() {
    let s = scene();
    let entry = METHODS.iter().find(|m| m.id == "random").unwrap();
    let at = |round| (entry.make)().select(&s.query("random", 64, round), 10).unwrap();
    assert_ne!(at(1), at(2));
    assert_eq!(at(1), at(1));
}

/// METHODS 6.0, matrix E1, K = 2: examples 3 and 1.
#[test]
fn least_confidence_worked_example() {
    let p: [[f32; 3]; 6] = [
        [0.5, 0.3, 0.2],
        [0.4, 0.35, 0.25],
        [0.9, 0.05, 0.05],
        [0.34, 0.33, 0.33],
        [0.49, 0.49, 0.02],
        [0.55, 0.225, 0.225],
    ];
    let logits: Vec<f32> = p.as_flattened().iter().map(|p| p.ln()).collect();
    let logits = Tensor::new(&Device::Cpu, [6, 3], &logits).unwrap();
    let scores = dalcore::ops::least_confidence(&logits).unwrap();
    assert_eq!(dalcore::ops::top_k(&scores, 6).unwrap().to_vec::<u32>().unwrap(), [3, 1, 4, 0, 5, 2]);
    let wanted = [0.5f32, 0.6, 0.1, 0.66, 0.51, 0.45];
    for (s, u) in scores.to_vec::<f32>().unwrap().iter().zip(wanted) {
        assert!((1.0 - (-s).exp() - u).abs() < 1e-6, "{s} {u}");
    }
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
    let mut s = scene();
    let mut values = s.model.params.to_host().unwrap().into_iter().map(|(_, v)| v).collect::<Vec<_>>();
    values[0][0] = f32::NAN;
    let mut values = values.into_iter();
    s.model.params.load(|_| Ok(values.next().unwrap())).unwrap();
    for id in ["coreset", "least-confidence"] {
        let e = s.pick(id, 64, 5).unwrap_err().to_string();
        assert!(e.contains("NaN") || e.contains("finite"), "{id}: {e}");
    }
}

#[test]
fn the_table_is_sound() {
    for (i, m) in METHODS.iter().enumerate() {
        assert!(METHODS[..i].iter().all(|o| o.id != m.id && o.paper_name != m.paper_name));
        assert!(!m.about.is_empty());
        assert_eq!(dalcore::methods::find(m.paper_name).unwrap().id, m.id);
    }
    assert!(dalcore::methods::find("corset").err().unwrap().to_string().contains("did you mean 'coreset'"));
}
