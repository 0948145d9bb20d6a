//! What changes from one training step to the next, where kernels can read it.
//!
//! A value passed at launch is frozen when a step is captured as a graph. Whatever moves between steps therefore
//! lives in this small device buffer, which the step itself advances, eager or captured.

use std::cell::RefCell;

use crate::Result;
use crate::device::{Device, Launch, launch};
use crate::tensor::Buf;

/// Number of words of a clock; the same in `kernels/optim.cu`.
const WORDS: usize = 8;

/// The words of a clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Word {
    /// Steps since the round began: `b` of the dropout streams.
    Step = 0,
    /// The epoch: `b` of the crop and flip streams.
    Epoch = 1,
    /// Position of the batch in the epoch's order of examples.
    Offset = 2,
    /// Steps since the epoch began: where the step writes its loss.
    Slot = 3,
    /// The learning rate's bits.
    Rate = 4,
}

/// A counter block on one device.
pub struct Clock {
    device: Device,
    words: RefCell<Buf<u32>>,
}

impl Clock {
    /// All words zero.
    pub fn new(device: &Device) -> Result<Clock> {
        Ok(Clock { device: device.clone(), words: RefCell::new(Buf::zeros(device, WORDS)?) })
    }

    /// Sets the words at the start of an epoch.
    pub fn start(&self, step: u32, epoch: u32, rate: f32) -> Result<()> {
        self.resume(step, epoch, rate, [0, 0])
    }

    /// Sets the words within an epoch: `slot` steps of it are done, with `offset` examples.
    pub fn resume(&self, step: u32, epoch: u32, rate: f32, [offset, slot]: [u32; 2]) -> Result<()> {
        self.words.borrow_mut().write(&self.device, &[step, epoch, offset, slot, rate.to_bits(), 0, 0, 0])
    }

    /// Moves on by one batch of `n` examples.
    pub fn advance(&self, n: usize) -> Result<()> {
        let mut w = self.words.borrow_mut();
        match &self.device {
            Device::Cpu => {
                let w = w.host_mut("clock")?;
                w[Word::Step as usize] += 1;
                w[Word::Offset as usize] += n as u32;
                w[Word::Slot as usize] += 1;
            }
            Device::Cuda(c) => launch::clock_advance(c, Launch::grid(1, 1, 1, 32), &mut w, n as u32)?,
        }
        Ok(())
    }

    /// One word; on the CPU only, kernels read the buffer.
    pub fn host(&self, word: Word) -> Result<u32> {
        Ok(self.words.borrow().host("clock")?[word as usize])
    }

    /// The buffer for kernels (a window: cheap).
    pub fn words(&self) -> Buf<u32> {
        self.words.borrow().clone()
    }
}
