//! When units started, as the service manager says.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use vireo_classify::Unit;

/// When each unit started, on the system's monotonic clock: from the moment it left being inactive
/// until it had settled.
pub type Starts = BTreeMap<Unit, RangeInclusive<Duration>>;

/// The properties of units (`systemctl show`, org.freedesktop.systemd1(5)) that say it.
pub const START_PROPERTIES: [&str; 4] = [
    "Id",
    "InactiveExitTimestampMonotonic",
    "ActiveEnterTimestampMonotonic",
    "InactiveEnterTimestampMonotonic",
];

/// For how long after it is active a unit counts as starting: many say too early that they are
/// ready.
pub(crate) const SETTLE: Duration = Duration::from_secs(5);

/// When the units started last, by what `systemctl show --property=...` says of all of them: a block of lines
/// per unit. Units that never started are left out.
///
/// ```
/// let text = b"Id=a.service\nInactiveExitTimestampMonotonic=7000000\nActiveEnterTimestampMonotonic=8000000\n";
/// assert_eq!(vireo_record::parse_starts(text).len(), 1);
/// ```
#[must_use]
pub fn parse_starts(text: &[u8]) -> Starts {
    String::from_utf8_lossy(text).split("\n\n").filter_map(start_of).collect()
}

/// The start in one block.
fn start_of(block: &str) -> Option<(Unit, RangeInclusive<Duration>)> {
    let value = |key: &str| {
        let mut lines = block.lines().filter_map(|line| line.split_once('='));
        lines.find(|(name, _)| *name == key).map(|(_, value)| value)
    };
    let time = |key: &str| {
        let micros = value(key).and_then(|value| value.parse().ok()).unwrap_or(0);
        Duration::from_micros(micros)
    };
    let [id, left, ups @ ..] = START_PROPERTIES;
    let from = time(left);
    // One that ended at once, or that is still starting, never was active.
    let end =
        ups.into_iter().map(time).filter(|end| *end >= from).min().unwrap_or(Duration::MAX / 2);
    (from > Duration::ZERO).then(|| Some((Unit::new(value(id)?), from..=end + SETTLE)))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_lasts_until_the_unit_has_settled() {
        let block = "Id=a.service\nInactiveExitTimestampMonotonic=7000000\n\
            ActiveEnterTimestampMonotonic=8000000\nInactiveEnterTimestampMonotonic=6000000\n";
        let secs = Duration::from_secs;
        assert_eq!(start_of(block), Some((Unit::new("a.service"), secs(7)..=secs(13))));
        let failed = block.replace("=8000000", "=5000000").replace("=6000000", "=7500000");
        let (_, range) = start_of(&failed).expect("it left being inactive");
        assert_eq!(*range.end(), Duration::from_millis(12_500));
        assert_eq!(start_of("Id=a.service\nInactiveExitTimestampMonotonic=0\n"), None);
    }
}
