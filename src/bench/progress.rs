//! Progress on stderr: two bars in a terminal, lines when asked for, nothing otherwise.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::train::EpochEnd;

/// How much is said on stderr.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// Nothing.
    Quiet,
    /// A line per round.
    Lines,
    /// Bars for rounds and epochs.
    Bars,
}

/// The bars of one experiment.
pub struct Progress {
    verbosity: Verbosity,
    bars: MultiProgress,
    rounds: ProgressBar,
    epochs: ProgressBar,
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ ")
}

impl Progress {
    /// `rounds` rounds in all, each worth its number of images × epochs so that the time left is honest.
    pub fn new(verbosity: Verbosity, work: u64) -> Progress {
        let bars = MultiProgress::new();
        let (rounds, epochs) = match verbosity {
            Verbosity::Bars => (bars.add(ProgressBar::new(work)), bars.add(ProgressBar::new(0))),
            _ => (ProgressBar::hidden(), ProgressBar::hidden()),
        };
        rounds.set_style(style("{msg:<44} {wide_bar:.cyan} {percent:>3} %  {elapsed} gone, {eta} left"));
        epochs.set_style(style("{msg:<44} {wide_bar:.blue} epoch {pos}/{len}"));
        if verbosity == Verbosity::Bars {
            rounds.enable_steady_tick(Duration::from_millis(500));
        }
        Progress { verbosity, bars, rounds, epochs }
    }

    /// Work that is on disk already.
    pub fn skip(&self, work: u64) {
        self.rounds.inc(work);
        self.rounds.reset_eta();
    }

    /// A round begins.
    pub fn round(&self, what: &str, epochs: u32) {
        self.rounds.set_message(what.to_string());
        self.epochs.reset();
        self.epochs.set_length(u64::from(epochs));
        self.epochs.set_message("selecting");
    }

    /// Epochs of the round that are on disk already.
    pub fn resume(&self, epochs: usize) {
        self.epochs.set_position(epochs as u64);
        self.epochs.set_message("");
    }

    /// An epoch ended; `work` is what it was worth.
    pub fn epoch(&self, e: &EpochEnd, test: usize, work: u64) {
        self.rounds.inc(work);
        self.epochs.inc(1);
        let accuracy = 100.0 * f64::from(e.correct) / test.max(1) as f64;
        self.epochs.set_message(format!("{:.0} images/s · test accuracy {accuracy:.2} %", e.images_per_second));
    }

    /// A line of its own, in every mode but quiet.
    pub fn line(&self, text: &str) {
        match self.verbosity {
            Verbosity::Quiet => {}
            Verbosity::Lines => eprintln!("{text}"),
            Verbosity::Bars => drop(self.bars.println(text)),
        }
    }

    /// Removes the bars.
    pub fn finish(&self) {
        self.epochs.finish_and_clear();
        self.rounds.finish_and_clear();
    }
}
