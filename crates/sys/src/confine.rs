//! Giving up rights for good, for processes that do one dangerous thing.

use std::io;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// The rights that mounting an image and writing any tree into it take (capabilities(7)).
pub const BUILD_RIGHTS: &[(&str, CapabilitySet)] = &[
    // Loop devices, mounts, `trusted.*` and `security.*` attributes.
    ("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN),
    // The files of any owner, as what they are: owner, group, mode, set-ID bits, attributes.
    ("CAP_DAC_OVERRIDE", CapabilitySet::DAC_OVERRIDE),
    ("CAP_CHOWN", CapabilitySet::CHOWN),
    ("CAP_FOWNER", CapabilitySet::FOWNER),
    ("CAP_FSETID", CapabilitySet::FSETID),
    ("CAP_SETFCAP", CapabilitySet::SETFCAP),
    ("CAP_MKNOD", CapabilitySet::MKNOD),
    // Asking who uses an image that belongs to another user.
    ("CAP_LEASE", CapabilitySet::LEASE),
];

/// Ends this process (`SIGKILL`) when the thread that started it is gone.
///
/// # Errors
///
/// The parent, number `parent`, is gone already; or as `prctl(2)`.
pub fn die_with_parent(parent: u32) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // Had it died before the call, no signal would come.
    let is_there = getppid().is_some_and(|pid| pid.as_raw_nonzero().get().unsigned_abs() == parent);
    if is_there { Ok(()) } else { Err(io::Error::other("the process that started this is gone")) }
}

/// Gives up every right but [`BUILD_RIGHTS`] and every way to get one back: this thread's and those
/// of all programs it starts. To be called before there is a second thread.
///
/// # Errors
///
/// As `capset(2)` and `prctl(2)`.
pub fn keep_build_rights() -> io::Result<()> {
    let keep = BUILD_RIGHTS.iter().fold(CapabilitySet::empty(), |set, (_, right)| set | *right);
    // Without this right the set cannot be made smaller; but then there is none to be gained by it.
    let may_drop = capabilities(None)?.effective.contains(CapabilitySet::SETPCAP);
    for bit in (0..u64::BITS).filter(|_| may_drop) {
        let right = CapabilitySet::from_bits_retain(1 << bit);
        // The kernel says which there are: it refuses numbers beyond the last.
        match capability_is_in_bounding_set(right) {
            Ok(true) if !keep.contains(right) => remove_capability_from_bounding_set(right)?,
            Ok(_) => {}
            Err(_) => break,
        }
    }
    let held = capabilities(None)?.permitted & keep;
    let inheritable = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: held, permitted: held, inheritable })?;
    Ok(set_no_new_privs(true)?)
}

/// Names or numbers of the rights that this thread has beyond [`BUILD_RIGHTS`].
#[must_use]
pub fn excess_rights() -> Vec<String> {
    let keep = BUILD_RIGHTS.iter().fold(CapabilitySet::empty(), |set, (_, right)| set | *right);
    // Not to know counts as all.
    let has = capabilities(None).map_or(CapabilitySet::all(), |sets| sets.permitted);
    let excess = (has - keep).bits();
    let bits = (0..u64::BITS).filter(|bit| excess >> bit & 1 == 1);
    bits.map(|bit| format!("capability {bit}")).collect()
}

/// Whether programs that this thread starts get no more rights than it has.
#[must_use]
pub fn has_no_new_rights() -> bool {
    rustix::thread::no_new_privs().unwrap_or(false)
}

/// Whether this thread has the right to mount (`CAP_SYS_ADMIN`, in effect).
#[must_use]
pub fn can_mount() -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}
