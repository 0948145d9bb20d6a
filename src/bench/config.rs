//! The description of an experiment: preset, profile, file and `--set` resolved into one [`Config`] per data set.
//!
//! Every struct refuses unknown keys. The resolved configuration goes into the manifest of each run.

use serde::{Deserialize, Serialize};

use crate::data::{self, Spec};
use crate::methods::{
    adversarial_bim, bald, cluster_margin, gcn, kmeans, learning_loss, mcadl, power_bald, probcover, ssl_consistency,
    ssl_diff2aug, typiclust, vaal, waal,
};
use crate::nn::Precision;
use crate::train::{Recipe, Ssl, TrainerKind};
use crate::{Error, Result, names};

/// Everything that decides the bytes of a run, apart from the seed and the method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The network's size; absent for LeNet, which has only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<Network>,
    /// How a model is trained.
    pub train: Recipe,
    /// What MixMatch has beyond that.
    pub ssl: Ssl,
    /// How it is evaluated.
    pub eval: Eval,
    /// How much is labelled.
    pub budget: Budget,
    /// Settings of the method of this name.
    #[serde(rename = "adversarial-bim")]
    pub adversarial_bim: adversarial_bim::Settings,
    /// Settings of the method of this name.
    pub bald: bald::Settings,
    /// Settings of the method of this name.
    pub kmeans: kmeans::Settings,
    /// Settings of the method of this name.
    #[serde(rename = "learning-loss")]
    pub learning_loss: learning_loss::Settings,
    /// Likewise.
    #[serde(rename = "cluster-margin")]
    pub cluster_margin: cluster_margin::Settings,
    /// Likewise.
    pub mcadl: mcadl::Settings,
    /// Likewise.
    #[serde(rename = "core-gcn")]
    pub core_gcn: gcn::CoreSettings,
    /// Likewise.
    #[serde(rename = "uncertain-gcn")]
    pub uncertain_gcn: gcn::UncertainSettings,
    /// Likewise.
    pub vaal: vaal::Settings,
    /// Likewise.
    pub waal: waal::Settings,
    /// Settings of the method of this name.
    #[serde(rename = "ssl-consistency")]
    pub ssl_consistency: ssl_consistency::Settings,
    /// Settings of the method of this name.
    #[serde(rename = "ssl-diff2aug-kmeans")]
    pub ssl_diff2aug_kmeans: ssl_diff2aug::Settings,
    /// Settings of the method of this name.
    #[serde(rename = "mean-std")]
    pub mean_std: bald::Passes,
    /// Settings of the method of this name.
    #[serde(rename = "var-ratio")]
    pub var_ratio: bald::Passes,
    /// Settings of the method of this name.
    #[serde(rename = "power-bald")]
    pub power_bald: power_bald::Settings,
    /// Settings of the method of this name.
    pub probcover: probcover::Settings,
    /// Settings of the method of this name.
    pub typiclust: typiclust::Settings,
}

/// Keys under `model`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Network {
    /// Channels of the first stage of ResNet-18: 16 in the paper's code, 64 in the standard network.
    pub width: usize,
}

/// Keys under `eval`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Eval {
    /// Images per evaluation batch; changes memory and speed, never a result.
    pub batch: usize,
}

/// Keys under `budget`, in percent of the pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// The random start set.
    pub start: f64,
    /// Added per round.
    pub query: f64,
    /// Where to stop.
    pub end: f64,
}

impl Budget {
    /// Size of the labelled set after each round, for a pool of `n`: floor(percent · n / 100).
    pub fn targets(&self, n: usize) -> Result<Vec<usize>> {
        let refuse = |key: &str, why: String| Err(Error::Config { key: key.into(), why });
        if !(self.start > 0.0 && self.start <= 100.0) {
            return refuse("budget.start", format!("{} is not a percentage above 0 and up to 100", self.start));
        }
        if !(self.end >= self.start && self.end <= 100.0) {
            let why = format!("{} % must lie between budget.start = {} % and 100 %", self.end, self.start);
            return refuse("budget.end", why);
        }
        if (self.query.is_nan() || self.query <= 0.0) && self.end > self.start {
            return refuse("budget.query", format!("{} % per round never reaches budget.end", self.query));
        }
        let rounds = if self.end > self.start { ((self.end - self.start) / self.query + 1e-9) as usize } else { 0 };
        // The small term keeps 6.5 % of 12,000 from becoming 779 by rounding.
        let size = |r: usize| ((self.start + r as f64 * self.query) * n as f64 / 100.0 + 1e-9) as usize;
        let targets: Vec<usize> = (0..=rounds).map(size).collect();
        if targets.first() == Some(&0) || targets.windows(2).any(|w| w[0] == w[1]) {
            return refuse("budget", format!("a round would label nothing in a pool of {n}: sizes {targets:?}"));
        }
        Ok(targets)
    }
}

/// Which bugs of the reference code are reproduced: none, or those that most probably made the published numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum Profile {
    Clean,
    Repro,
}

impl Profile {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Profile::Clean => "clean",
            Profile::Repro => "repro",
        }
    }
}

/// A preset: a small file inside the binary.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preset {
    /// How many of the standard seeds.
    pub seeds: usize,
    /// Number of budgets; all of the paper's when absent.
    points: Option<usize>,
    /// Equal steps up to the last budget (otherwise: the paper's first ones).
    #[serde(default = "yes")]
    spread: bool,
    /// Epochs are divided by this.
    epochs_divisor: Option<u32>,
    /// Or set to this.
    epochs: Option<u32>,
}

fn yes() -> bool {
    true
}

/// Names and files of the presets.
pub const PRESETS: &[(&str, &str)] = &[
    ("paper", include_str!("presets/paper.toml")),
    ("quick", include_str!("presets/quick.toml")),
    ("smoke", include_str!("presets/smoke.toml")),
];

impl Preset {
    /// Looks a preset up by name; returns its canonical name too.
    pub fn find(name: &str) -> Result<(&'static str, Preset)> {
        let found = PRESETS.iter().find(|(n, _)| names::same(n, name));
        let (id, text) = found.ok_or_else(|| names::unknown("--preset", name, PRESETS.iter().map(|p| p.0)))?;
        let preset = toml::from_str(text).map_err(|e| Error::Config { key: "--preset".into(), why: e.to_string() })?;
        Ok((id, preset))
    }
}

/// The first `n` of 10, 20, 30, …
pub fn standard_seeds(n: usize) -> Vec<u64> {
    (1..=n as u64).map(|i| 10 * i).collect()
}

impl Config {
    /// Preset and profile applied to a data set's constants, before any file or `--set`.
    pub fn base(spec: &Spec, preset: &Preset, profile: Profile) -> Config {
        let epochs = preset.epochs.unwrap_or(spec.epochs.div_ceil(preset.epochs_divisor.unwrap_or(1)));
        let scaled = |m: &u32| (f64::from(*m) * f64::from(epochs) / f64::from(spec.epochs)).round() as u32;
        let augment = match profile {
            Profile::Clean => spec.clean,
            Profile::Repro => spec.repro,
        };
        let (mut start, mut query, mut end) =
            (f64::from(spec.budgets.start), f64::from(spec.budgets.query), f64::from(spec.budgets.end));
        match preset.points {
            Some(points) if preset.spread => {
                query = end / points.max(1) as f64;
                start = query;
            }
            Some(points) => end = start + query * (points.max(1) - 1) as f64,
            None => {}
        }
        Config {
            model: match spec.model {
                data::Model::LeNet => None,
                data::Model::ResNet18 { width } => Some(Network { width }),
            },
            train: Recipe {
                epochs,
                milestones: spec.milestones.iter().map(scaled).collect(),
                lr: 0.1,
                momentum: 0.9,
                weight_decay: 5e-4,
                grad_clamp: 0.1,
                batch: spec.batch_train,
                drop_small_tail: true,
                early_stop: 0.0,
                crop_pad: augment.crop_pad,
                flip: augment.flip == data::Flip::Half,
                precision: Precision::F32,
            },
            ssl: Ssl { shrink_everything: profile == Profile::Repro, ..Ssl::default() },
            eval: Eval { batch: spec.batch_test },
            budget: Budget { start, query, end },
            adversarial_bim: adversarial_bim::Settings::of(profile),
            bald: bald::Settings::of(profile),
            kmeans: kmeans::Settings::of(profile),
            learning_loss: learning_loss::Settings::of(profile),
            cluster_margin: cluster_margin::Settings::of(profile),
            mcadl: mcadl::Settings::of(profile),
            core_gcn: gcn::CoreSettings::of(profile),
            uncertain_gcn: gcn::UncertainSettings::of(profile),
            vaal: vaal::Settings::of(profile),
            waal: waal::Settings::of(profile, spec.model),
            ssl_consistency: ssl_consistency::Settings::default(),
            ssl_diff2aug_kmeans: ssl_diff2aug::Settings::of(profile),
            mean_std: bald::Passes::default(),
            var_ratio: bald::Passes::default(),
            power_bald: power_bald::Settings::default(),
            probcover: probcover::Settings::default(),
            typiclust: typiclust::Settings::default(),
        }
    }

    /// What the manifest of a run says: everything, but of the methods' tables only that of `method`, and `ssl` only where
    /// MixMatch trains. Settings of another method must not keep a run from going on.
    pub fn of_method(&self, method: &str, trainer: TrainerKind) -> Result<serde_json::Value> {
        let failed = |why: String| Error::Config { key: "config".into(), why };
        let mut config = serde_json::to_value(self).map_err(|e| failed(e.to_string()))?;
        let table = config.as_object_mut().ok_or_else(|| failed("is not a table".into()))?;
        let ssl = trainer == TrainerKind::MixMatch;
        let common = |key: &str| ["model", "train", "eval", "budget"].contains(&key) || (ssl && key == "ssl");
        table.retain(|key, _| common(key) || key == method);
        Ok(config)
    }

    /// The network: LeNet, or ResNet-18 of the chosen width.
    pub fn network(&self) -> data::Model {
        self.model.map_or(data::Model::LeNet, |m| data::Model::ResNet18 { width: m.width })
    }

    /// Replaces values by dotted key, in order. Unknown keys and values of the wrong type are refused.
    pub fn with(self, changes: &[(String, toml::Value)]) -> Result<Config> {
        let refuse = |key: &str, why: String| Error::Config { key: key.into(), why };
        let mut table = toml::Value::try_from(&self).map_err(|e| refuse("config", e.to_string()))?;
        for (key, value) in changes {
            if self.model.is_none() && key.split('.').next() == Some("model") {
                let why = "this data set is trained with LeNet, which comes in one size; only ResNet-18 has a width";
                return Err(refuse(&format!("setting {key}"), why.into()));
            }
            let known = keys(&table, "");
            let mut at = &mut table;
            for part in key.split('.') {
                at = at
                    .as_table_mut()
                    .and_then(|t| t.get_mut(part))
                    .ok_or_else(|| names::unknown(&format!("setting {key}"), key, known.iter().map(|k| k.as_str())))?;
            }
            // 1 is as good as 1.0 where a fraction is wanted.
            *at = match (&*at, value) {
                (toml::Value::Float(_), toml::Value::Integer(i)) => toml::Value::Float(*i as f64),
                _ => value.clone(),
            };
            if let Err(e) = table.clone().try_into::<Config>() {
                return Err(refuse(&format!("setting {key}"), e.message().trim().to_string()));
            }
        }
        let config: Config = table.try_into().map_err(|e: toml::de::Error| refuse("config", e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<()> {
        let refuse = |key: &str, why: &str| Err(Error::Config { key: key.into(), why: why.into() });
        if self.model.is_some_and(|m| !(1..=1024).contains(&m.width)) {
            return refuse(
                "model.width",
                "must be between 1 and 1024; 16 is the paper's code, 64 the standard network",
            );
        }
        let t = &self.train;
        if t.epochs > 1_000_000 {
            return refuse("train.epochs", "must be at most 1000000");
        }
        if t.batch == 0 || self.eval.batch == 0 {
            return refuse(if t.batch == 0 { "train.batch" } else { "eval.batch" }, "must be at least 1");
        }
        if !(t.lr.is_finite() && t.lr >= 0.0) {
            return refuse("train.lr", "must be a number of at least 0");
        }
        let at_least_zero = |v: f32| (0.0..).contains(&v);
        if !(0.0..=1.0).contains(&t.momentum) || !at_least_zero(t.weight_decay) || !at_least_zero(t.grad_clamp) {
            return refuse("train", "momentum must be in 0 to 1, weight_decay and grad_clamp at least 0");
        }
        self.ssl.check()?;
        self.adversarial_bim.check()?;
        self.bald.check()?;
        self.kmeans.check()?;
        self.cluster_margin.check()?;
        self.mcadl.check()?;
        self.core_gcn.train.check("core-gcn")?;
        self.uncertain_gcn.train.check("uncertain-gcn")?;
        self.vaal.check()?;
        self.waal.check()?;
        self.ssl_consistency.check()?;
        self.ssl_diff2aug_kmeans.check()?;
        self.mean_std.check("mean-std")?;
        self.var_ratio.check("var-ratio")?;
        self.power_bald.check()?;
        self.probcover.check()?;
        self.typiclust.check()?;
        self.learning_loss.check()
    }
}

/// Every dotted key of a table.
fn keys(value: &toml::Value, prefix: &str) -> Vec<String> {
    let Some(table) = value.as_table() else { return vec![prefix.to_string()] };
    let join = |k: &String| if prefix.is_empty() { k.clone() } else { format!("{prefix}.{k}") };
    table.iter().flat_map(|(k, v)| keys(v, &join(k))).collect()
}

/// `key=value` as typed after `--set`; the value is TOML, or a plain word.
pub fn parse_setting(text: &str) -> Result<(String, toml::Value)> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Error::Config {
            key: format!("--set {text}"),
            why: "write key=value, for instance train.lr=0.05".into(),
        });
    };
    let (key, value) = (key.trim().to_string(), value.trim());
    let parsed = toml::from_str::<toml::Table>(&format!("v = {value}")).ok().and_then(|mut t| t.remove("v"));
    Ok((key, parsed.unwrap_or_else(|| toml::Value::String(value.into()))))
}

/// The tables of a configuration file as a list of settings.
pub fn settings_of(table: &toml::Table) -> Vec<(String, toml::Value)> {
    let value = toml::Value::Table(table.clone());
    let at = |key: &str| key.split('.').try_fold(&value, |v, part| v.get(part)).cloned();
    keys(&value, "").into_iter().filter_map(|k| at(&k).map(|v| (k, v))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::mnist;

    fn base(preset: &str, profile: Profile) -> Config {
        Config::base(&mnist::SPEC, &Preset::find(preset).unwrap().1, profile)
    }

    #[test]
    fn budgets_of_the_paper_and_of_quick() {
        let paper = base("paper", Profile::Repro).budget.targets(60_000).unwrap();
        assert_eq!(paper, (1..=10).map(|r| 1200 * r).collect::<Vec<_>>());
        assert_eq!(base("quick", Profile::Clean).budget.targets(12_000).unwrap(), [480, 960, 1440, 1920, 2400]);
        assert_eq!(base("smoke", Profile::Clean).budget.targets(12_000).unwrap(), [240, 480]);
        // GTSRB: truncation always gives thirteen points, the last one whole.
        let gtsrb = Budget { start: 10.0, query: 5.0, end: 70.0 }.targets(39_209).unwrap();
        assert_eq!((gtsrb.len(), gtsrb[0], gtsrb[12]), (13, 3920, 27_446));
    }

    #[test]
    fn profiles_differ_in_named_switches() {
        let (clean, repro) = (base("paper", Profile::Clean), base("paper", Profile::Repro));
        assert!(!clean.train.flip && clean.train.crop_pad == 2);
        assert!(repro.train.flip && repro.train.crop_pad == 0);
        assert_eq!((repro.train.epochs, repro.train.milestones.as_slice()), (50, &[20, 40][..]));
        assert_eq!(base("quick", Profile::Clean).train.epochs, 17);
    }

    #[test]
    fn only_resnet_has_a_width() {
        let set = |spec: &Spec, s: &str| {
            Config::base(spec, &Preset::find("quick").unwrap().1, Profile::Clean).with(&[parse_setting(s).unwrap()])
        };
        let cifar = &crate::data::cifar::CIFAR10;
        assert_eq!(set(cifar, "train.lr=0.1").unwrap().network().name(), "resnet18-w16");
        assert_eq!(set(cifar, "model.width=64").unwrap().network().name(), "resnet18-w64");
        for (spec, bad, why) in [
            (cifar, "model.width=0", "between 1 and 1024"),
            (cifar, "model.width=wide", "model.width"),
            (cifar, "model.wide=16", "did you mean 'model.width'"),
            (&mnist::SPEC, "model.width=16", "LeNet"),
        ] {
            let e = set(spec, bad).unwrap_err();
            assert!(e.is_misuse() && e.to_string().contains(why), "{e}");
        }
        assert_eq!(set(&mnist::SPEC, "train.lr=0.1").unwrap().network(), data::Model::LeNet);
    }

    #[test]
    fn settings_are_checked() {
        let set = |s: &str| base("quick", Profile::Clean).with(&[parse_setting(s).unwrap()]);
        assert_eq!(set("train.lr=0.05").unwrap().train.lr, 0.05);
        assert_eq!(set("train.lr=1").unwrap().train.lr, 1.0);
        let e = set("train.lrr=1").unwrap_err().to_string();
        assert!(e.contains("train.lrr") && e.contains("did you mean 'train.lr'"), "{e}");
        let e = set("train.epochs=many").unwrap_err().to_string();
        assert!(e.contains("train.epochs"), "{e}");
        assert!(set("train.epochs=1000001").is_err() && set("train.batch=0").is_err());
        assert!(parse_setting("train.lr").is_err());
        for bad in ["alpha=0", "alpha=-1", "lambda_u=-1", "ema=1", "temperature=0", "lr=nan", "shrink=100", "ramp=-1"] {
            let e = set(&format!("ssl.{bad}")).unwrap_err();
            assert!(e.is_misuse() && e.to_string().contains("ssl."), "{bad}: {e}");
        }
        let zero = base("quick", Profile::Clean).with(&[parse_setting("budget.start=0").unwrap()]).unwrap();
        assert!(zero.budget.targets(100).unwrap_err().to_string().contains("budget.start"));
    }
}
