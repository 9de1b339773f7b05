//! The tests of the whole, in one program. Their names say what they need: `root_*` loop devices
//! and mounts, `live_*` a guest with real systemd, `vm_*` a real kernel.

mod at_once;
mod bad_bundle;
mod bad_image;
mod builds;
mod derived;
mod esp;
mod facts;
mod file_systems;
mod formats;
mod full_disk;
mod grown;
mod hostile;
mod images;
mod interrupted;
mod live_activate;
mod live_drift;
mod live_killed;
mod live_record;
mod live_refused;
mod live_self;
mod live_undo;
mod live_update;
mod live_zoo;
mod memory;
mod power_cut;
mod property;
mod repository;
mod repository_killed;
mod rootless;
mod swapped;
mod unmounted;
mod vm;
mod vm_boot;
mod vm_recover;
