//! What the kernel says about this process.

use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use super::clamp;

/// What the kernel says about this process, read when somebody asks for the metrics.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) started: u64,
}

impl Process {
    /// A field of `/proc/self/status`; sizes there are in KiB.
    fn status(field: &str) -> Option<i64> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(field))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    }

    /// The soft limit of open files; `None` when there is none.
    fn most_descriptors() -> Option<i64> {
        let limits = fs::read_to_string("/proc/self/limits").ok()?;
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))?;
        line.split_ascii_whitespace().next()?.parse().ok()
    }

    /// User and system time in seconds. `/proc/self/stat` counts in USER_HZ, which is 100 on every
    /// architecture that Rust's standard library runs on under Linux.
    fn cpu() -> Option<f64> {
        let stat = fs::read_to_string("/proc/self/stat").ok()?;
        // The second field is the program's name and may hold anything, even `)`.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace().skip(11);
        let user: u32 = fields.next()?.parse().ok()?;
        let system: u32 = fields.next()?.parse().ok()?;
        Some((f64::from(user) + f64::from(system)) / 100.0)
    }
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let gauges = [
            (
                "process_resident_memory",
                "Resident memory",
                Some(Unit::Bytes),
                Self::status("VmRSS:").map(|kib| kib.saturating_mul(1024)),
            ),
            ("process_threads", "Threads", None, Self::status("Threads:")),
            (
                "process_open_fds",
                "Open file descriptors",
                None,
                fs::read_dir("/proc/self/fd")
                    .ok()
                    // The directory itself is open while it is read.
                    .map(|entries| clamp(entries.count().saturating_sub(1))),
            ),
            (
                "process_max_fds",
                "Most file descriptors that may be open",
                None,
                Self::most_descriptors(),
            ),
            (
                "process_start_time",
                "When the process began, since 1970",
                Some(Unit::Seconds),
                i64::try_from(self.started).ok(),
            ),
        ];
        for (name, help, unit, value) in gauges {
            let Some(value) = value else { continue };
            let gauge = ConstGauge::<i64>::new(value);
            gauge.encode(encoder.encode_descriptor(
                name,
                help,
                unit.as_ref(),
                gauge.metric_type(),
            )?)?;
        }
        if let Some(seconds) = Self::cpu() {
            let counter = ConstCounter::<f64>::new(seconds);
            counter.encode(encoder.encode_descriptor(
                "process_cpu",
                "Processor time, user and system",
                Some(&Unit::Seconds),
                counter.metric_type(),
            )?)?;
        }
        Ok(())
    }
}
