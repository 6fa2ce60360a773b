//! Series that are found again without their labels.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::rc::Rc;
use std::sync::OnceLock;
use std::thread::LocalKey;

use prometheus_client::metrics::family::{Family, MetricConstructor};

use super::tally::{Count, Times};

/// Words of one name that are found again without their labels.
pub(super) const WORDS: usize = 24;

/// Names remembered per thread before the memory is begun anew. Names come from the configuration;
/// the bound only matters after very many reloads with ever new names.
const REMEMBERED: usize = 4096;

pub(super) type One = [(&'static str, String); 1];
pub(super) type Three = [(&'static str, String); 3];
pub(super) type Two = [(&'static str, String); 2];
pub(super) type Buckets = fn() -> Times;
pub(super) type Remembered<T> = RefCell<HashMap<String, (u64, Rc<T>), BuildHasherDefault<Quick>>>;

/// One series of a family, made when it is first needed.
#[derive(Debug)]
pub(super) struct Series<M, C = fn() -> M> {
    family: Family<One, M, C>,
    labels: One,
    made: OnceLock<M>,
}

impl<M: Copy, C: MetricConstructor<M>> Series<M, C> {
    pub(super) const fn new(family: Family<One, M, C>, labels: One) -> Self {
        Self {
            family,
            labels,
            made: OnceLock::new(),
        }
    }

    pub(super) fn get(&self) -> M {
        *self
            .made
            .get_or_init(|| self.family.get_or_create_owned(&self.labels))
    }
}

/// The counters of one name by a second label, whose values are fixed words: those met so far.
#[derive(Debug)]
pub(super) struct Words {
    family: Family<Two, Count>,
    label: (&'static str, String),
    second: &'static str,
    met: [OnceLock<(&'static str, Count)>; WORDS],
}

impl Words {
    pub(super) fn new(
        family: &Family<Two, Count>,
        label: (&'static str, &str),
        second: &'static str,
    ) -> Self {
        Self {
            family: family.clone(),
            label: (label.0, label.1.to_owned()),
            second,
            met: [const { OnceLock::new() }; WORDS],
        }
    }

    pub(super) fn inc(&self, word: &'static str) {
        let mut met = self.met.iter().map_while(OnceLock::get);
        match met.find(|(known, _)| *known == word) {
            Some((_, count)) => count.inc(),
            None => self.meet(word).inc(),
        }
    }

    pub(super) fn add(&self, word: &'static str, more: u64) {
        if more == 0 {
            return;
        }
        let mut met = self.met.iter().map_while(OnceLock::get);
        match met.find(|(known, _)| *known == word) {
            Some((_, count)) => count.inc_by(more),
            None => self.meet(word).inc_by(more),
        }
    }

    #[cold]
    pub(super) fn meet(&self, word: &'static str) -> Count {
        let labels = [self.label.clone(), (self.second, word.to_owned())];
        let count = self.family.get_or_create_owned(&labels);
        for place in &self.met {
            // Another thread may have been faster; beyond the last place the family is asked.
            if place.get_or_init(|| (word, count)).0 == word {
                break;
            }
        }
        count
    }
}

/// Hashes names from the configuration, which nobody chooses to collide.
#[derive(Default)]
pub(super) struct Quick(u64);

impl Hasher for Quick {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        let mut last = [0; 8];
        for (to, from) in last.iter_mut().zip(rest) {
            *to = *from;
        }
        for word in words.iter().chain([&last]) {
            let mixed = self.0.rotate_left(5) ^ u64::from_le_bytes(*word);
            self.0 = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    fn finish(&self) -> u64 {
        // The table looks at the upper bits and at the lower ones; a product's are the upper.
        self.0 ^ self.0 >> 32
    }
}

pub(super) fn one(key: &'static str, value: &str) -> One {
    [(key, value.to_owned())]
}

pub(super) fn two(first: (&'static str, &str), second: (&'static str, &str)) -> Two {
    [
        (first.0, first.1.to_owned()),
        (second.0, second.1.to_owned()),
    ]
}

/// The handles of `name`, looked up by labels only once per thread.
pub(super) fn remembered<T>(
    memory: &'static LocalKey<Remembered<T>>,
    id: u64,
    name: &str,
    make: impl FnOnce() -> T,
) -> Rc<T> {
    memory.with_borrow_mut(|memory| {
        if let Some((of, handles)) = memory.get(name)
            && *of == id
        {
            return Rc::clone(handles);
        }
        if memory.len() >= REMEMBERED {
            memory.clear();
        }
        let handles = Rc::new(make());
        memory.insert(name.to_owned(), (id, Rc::clone(&handles)));
        handles
    })
}
