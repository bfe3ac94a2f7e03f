//! How full the volume is, and what follows.
//!
//! [`SpaceWatch`] decides, purely, from one measurement after the other; [`watch_space`] is the loop around it.
//! What a level means is carried out in `node/space.rs`: at [`Level::Soft`] the node hands its leaderships away and
//! takes only deletes; at [`Level::Hard`] it refuses entries too. Then the ballast is given up here, so that the
//! databases can still flush and compact.

use std::{io, path::Path, time::Duration};

use super::{Ballast, DataDirError};
use crate::config::{ByteCount, DiskLimits};

/// Between two measurements: at 500 MB/s a volume loses 0.5 GB in it, which the limits leave room for.
const INTERVAL: Duration = Duration::from_secs(1);

/// Default soft limit: a tenth of the volume, at most 4 GiB.
const SOFT_DIVISOR: u64 = 10;
const SOFT_MAX: ByteCount = ByteCount::mebi(4096);
/// Default hard limit: a twentieth of the volume, at most 1 GiB.
const HARD_DIVISOR: u64 = 20;
const HARD_MAX: ByteCount = ByteCount::mebi(1024);
/// Default ballast: a hundredth of the volume, at most 256 MiB.
const BALLAST_DIVISOR: u64 = 100;
const BALLAST_MAX: ByteCount = ByteCount::mebi(256);

/// Free and total bytes of a volume, as an unprivileged process sees them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Left.
    pub free: ByteCount,
    /// Of the volume.
    pub total: ByteCount,
}

/// How urgent it is. Ordered: the greater, the worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All is well.
    #[default]
    Enough,
    /// No proposals.
    Soft,
    /// No entries of other leaders either.
    Hard,
}

/// Free space below which a level begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceLimits {
    /// Of [`Level::Soft`].
    pub soft: ByteCount,
    /// Of [`Level::Hard`]. Not above `soft`.
    pub hard: ByteCount,
    /// Size of the ballast file; zero: none.
    pub ballast: ByteCount,
}

impl SpaceLimits {
    /// What was configured, and for the rest a share of a volume of this size.
    pub fn of_volume(total: ByteCount, configured: DiskLimits) -> Self {
        let share = |divisor, max: ByteCount| ByteCount(total.get() / divisor).min(max);
        let soft = configured.soft.unwrap_or_else(|| share(SOFT_DIVISOR, SOFT_MAX));
        Self {
            soft,
            hard: configured.hard.unwrap_or_else(|| share(HARD_DIVISOR, HARD_MAX)).min(soft),
            ballast: configured.ballast.unwrap_or_else(|| share(BALLAST_DIVISOR, BALLAST_MAX)),
        }
    }
}

/// Decides the level from measurements. A level is left only when free space exceeds its limit by a quarter, or the
/// node would flap between them while compactions come and go.
#[derive(Clone, Debug)]
pub struct SpaceWatch {
    limits: SpaceLimits,
    level: Level,
}

impl SpaceWatch {
    /// Begins at [`Level::Enough`].
    pub fn new(limits: SpaceLimits) -> Self {
        Self { limits, level: Level::Enough }
    }

    /// The level after a measurement of `free` bytes.
    pub fn observe(&mut self, free: ByteCount) -> Level {
        let SpaceLimits { soft, hard, ballast: _ } = self.limits;
        let limit = |level, limit: ByteCount| {
            if self.level >= level { limit.get().saturating_add(limit.get() / 4) } else { limit.get() }
        };
        self.level = if free.get() < limit(Level::Hard, hard) {
            Level::Hard
        } else if free.get() < limit(Level::Soft, soft) {
            Level::Soft
        } else {
            Level::Enough
        };
        self.level
    }
}

/// Free and total bytes of the volume that holds `path`.
///
/// # Errors
/// When the volume cannot be asked.
pub fn space_of(path: &Path) -> io::Result<Space> {
    let volume = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| ByteCount(blocks.saturating_mul(volume.f_frsize));
    Ok(Space { free: bytes(volume.f_bavail), total: bytes(volume.f_blocks) })
}

/// Measures for ever, keeps the ballast, and tells each measurement with its level. Dropping the future ends it.
///
/// The first measurement is made at once. `measure` is [`space_of`] the data folder in production.
pub async fn watch_space(
    limits: SpaceLimits,
    ballast: Ballast,
    measure: impl Fn() -> io::Result<Space>,
    mut tell: impl FnMut(Space, Level),
) {
    let mut watch = SpaceWatch::new(limits);
    let mut told = None;
    loop {
        match measure() {
            Ok(space) => {
                let level = watch.observe(space.free);
                if told != Some(level) {
                    log_level(level, space);
                    told = Some(level);
                }
                keep_ballast(&ballast, limits, level, space);
                tell(space, level);
            }
            Err(error) => tracing::error!(%error, "cannot measure free disk space"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

fn log_level(level: Level, space: Space) {
    let (free_bytes, total_bytes) = (space.free.get(), space.total.get());
    match level {
        Level::Enough => tracing::info!(free_bytes, total_bytes, "disk space is sufficient"),
        Level::Soft => tracing::warn!(
            free_bytes,
            total_bytes,
            "disk space is low: leaderships go elsewhere, and values are refused"
        ),
        Level::Hard => tracing::error!(free_bytes, total_bytes, "disk is full: no writes are taken"),
    }
}

/// Free at the hard limit; there again only when that would not bring the soft limit back.
fn keep_ballast(ballast: &Ballast, limits: SpaceLimits, level: Level, space: Space) {
    let spare = space.free.get().saturating_sub(limits.soft.get() + limits.soft.get() / 4);
    let kept: Result<(), DataDirError> = match level {
        Level::Hard => ballast.release(),
        Level::Enough if spare > limits.ballast.get() => ballast.ensure(limits.ballast),
        Level::Enough | Level::Soft => Ok(()),
    };
    if let Err(error) = kept {
        tracing::warn!(error = %crate::telemetry::chain(&error), "cannot keep the ballast file");
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use super::{
        Ballast, ByteCount, DiskLimits, Level, Space, SpaceLimits, SpaceWatch, space_of, watch_space,
    };

    const LIMITS: SpaceLimits =
        SpaceLimits { soft: ByteCount(1000), hard: ByteCount(400), ballast: ByteCount(100) };

    #[test]
    fn levels_begin_at_their_limit_and_end_a_quarter_above_it() {
        let mut watch = SpaceWatch::new(LIMITS);
        for (free, expected) in [
            (2000, Level::Enough),
            (1000, Level::Enough),
            (999, Level::Soft),
            (1249, Level::Soft),
            (1250, Level::Enough),
            (399, Level::Hard),
            (499, Level::Hard),
            (500, Level::Soft),
            (399, Level::Hard),
            (1249, Level::Soft),
            (5000, Level::Enough),
            (0, Level::Hard),
            (5000, Level::Enough),
        ] {
            assert_eq!(watch.observe(ByteCount(free)), expected, "{free} bytes free");
        }
    }

    #[test]
    fn limits_follow_the_size_of_the_volume_up_to_a_bound() {
        let gib = |count: u64| ByteCount::mebi(count * 1024);
        let none = DiskLimits::default();
        let small = SpaceLimits::of_volume(gib(10), none);
        assert_eq!((small.soft, small.hard), (gib(1), ByteCount::mebi(512)));
        let large = SpaceLimits::of_volume(gib(4096), none);
        assert_eq!((large.soft, large.hard, large.ballast), (gib(4), gib(1), ByteCount::mebi(256)));
        let configured = DiskLimits { soft: Some(ByteCount(10)), hard: None, ballast: Some(ByteCount(0)) };
        let tiny = SpaceLimits::of_volume(gib(10), configured);
        assert_eq!((tiny.soft, tiny.hard, tiny.ballast), (ByteCount(10), ByteCount(10), ByteCount(0)));
    }

    #[test]
    fn a_volume_has_a_size() {
        let space = space_of(&std::env::temp_dir()).expect("measurable");
        assert!(space.total.get() > 0 && space.free <= space.total);
    }

    #[tokio::test(start_paused = true)]
    async fn the_ballast_is_given_up_at_the_hard_limit_and_comes_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ballast");
        let measurements = Mutex::new(vec![2000, 300, 800, 1300, 2000, 0].into_iter());
        let measure = || match measurements.lock().expect("not poisoned").next() {
            Some(free) => Ok(Space { free: ByteCount(free), total: ByteCount(10_000) }),
            None => Err(io::Error::other("no more measurements")),
        };
        let mut seen = Vec::new();
        let exists = path.clone();
        let watch = watch_space(LIMITS, Ballast::at(path), measure, |_, level| {
            seen.push((level, exists.exists()));
        });
        assert!(tokio::time::timeout(super::INTERVAL * 7, watch).await.is_err(), "it never ends");
        assert_eq!(
            seen,
            [
                (Level::Enough, true),
                (Level::Hard, false),
                (Level::Soft, false),
                (Level::Enough, false),
                (Level::Enough, true),
                (Level::Hard, false),
            ]
        );
    }
}
