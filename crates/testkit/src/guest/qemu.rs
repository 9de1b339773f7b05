//! A whole machine: firmware, the disk's own boot loader, the kernel that this starts.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::error::{ErrorKind, TestkitError, failed};
use crate::lab::Lab;
use crate::run::{Run, tail};

const PROGRAM: &str = "qemu-system-x86_64";

/// What starts the disk's boot loader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// UEFI, as Debian's `ovmf` has it.
    Efi,
    /// A BIOS, the emulator's own.
    Bios,
}

/// UEFI for virtual machines, and where it keeps its variables.
const OVMF: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];

/// Memory of the machine.
const MEMORY: &str = "320M";

/// Longest from power on to power off. Where the processor is emulated, half a minute is usual on an idle machine.
const DEADLINE: Duration = Duration::from_secs(240);

/// Lines of the console that go into an error.
const CONSOLE_LINES: usize = 40;

/// What begins each line of the machine's report.
const MARK: &str = "report ";

/// What a machine that was started from a disk of [`BootDisks`](crate::bootdisk::BootDisks) told on its serial
/// console before it shut down.
#[derive(Clone, Debug)]
pub struct Booted {
    /// The release of the kernel that ran.
    pub kernel: String,
    /// What it had mounted: `/boot ext4`.
    pub mounts: Vec<String>,
    /// The first line of the page that its web server sent.
    pub page: String,
    /// Everything that was written to the console, by firmware and boot loader too.
    pub console: String,
    /// What ran it: `kvm` or `tcg`.
    pub accelerator: &'static str,
    /// From power on to power off.
    pub took: Duration,
}

/// Starts a machine from the whole disk `disk`, which is qcow2 if its name ends so, and waits until it has shut down.
/// What it writes is thrown away, so the disk stays as it is.
///
/// # Errors
///
/// The emulator or its firmware is not installed; or the machine did not boot or report in time: the message has
/// the end of its console.
pub fn boot(lab: &Lab, disk: &Path, firmware: Firmware) -> Result<Booted, TestkitError> {
    run(lab, disk, firmware, "snapshot=on")
}

/// The same by UEFI, and what the machine writes stays on the disk.
///
/// # Errors
///
/// As [`boot`].
pub fn boot_for_good(lab: &Lab, disk: &Path) -> Result<Booted, TestkitError> {
    // A machine that shuts down in order needs no flush of its host.
    run(lab, disk, Firmware::Efi, "cache=unsafe")
}

fn run(lab: &Lab, disk: &Path, firmware: Firmware, writes: &str) -> Result<Booted, TestkitError> {
    let disk = disk.canonicalize().map_err(failed("find the disk", disk))?;
    let (number, _) = lab.next_guest();
    let file = |what: &str| lab.dir().join(format!("q{number}.{what}"));
    let console = file("console");

    let accelerator = accelerator();
    let mut command = lab.command(PROGRAM);
    // The file of what the machine writes is made where temporary files are.
    command.env("TMPDIR", lab.dir());
    command.args(["-machine", "q35", "-m", MEMORY, "-no-reboot", "-nodefaults", "-nic", "none"]);
    command.args(processor(accelerator)).args(["-display", "none"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    if firmware == Firmware::Efi {
        command.args(ovmf(&file("variables"))?);
    }
    let format = if disk.extension().is_some_and(|end| end == "qcow2") { "qcow2" } else { "raw" };
    let disk = format!("if=none,id=disk,format={format},{writes},file={}", disk.display());
    command.args(["-drive", &disk, "-device", "virtio-blk-pci,drive=disk,bootindex=0"]);

    let started = Instant::now();
    let ended = Run::of(command, PROGRAM).deadline(DEADLINE).text();
    let took = started.elapsed();
    let console = fs::read(&console).map(|text| String::from_utf8_lossy(&text).into_owned());
    let console = console.unwrap_or_default();
    let told = ended.and_then(|_| read_report(&console));
    let (kernel, mounts, page) = told.map_err(|error| {
        let what = format!("its console ({accelerator}, {took:?}) ends with:");
        error.with_detail(what).with_detail(tail(&plain(&console), CONSOLE_LINES))
    })?;
    Ok(Booted { kernel, mounts, page, console, accelerator, took })
}

/// What has the emulator start UEFI, which keeps its variables in the file `variables`.
fn ovmf(variables: &Path) -> Result<Vec<String>, TestkitError> {
    if !OVMF.iter().all(|path| Path::new(path).exists()) {
        let message = format!("{} is absent: apt-get install ovmf", OVMF.join(" or "));
        return Err(TestkitError::new(ErrorKind::Host, message));
    }
    fs::copy(OVMF[1], variables).map_err(failed("copy", OVMF[1]))?;
    let drive = |what: String| ["-drive".to_owned(), format!("if=pflash,format=raw,{what}")];
    let code = drive(format!("unit=0,readonly=on,file={}", OVMF[0]));
    Ok([code, drive(format!("unit=1,file={}", variables.display()))].concat())
}

/// `kvm` where it runs any kernel, else `tcg`.
///
/// A device that can be opened is not enough: there are hosts without the processor's own virtualisation whose
/// device runs kernels made for it alone, and others hang.
fn accelerator() -> &'static str {
    let flags = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let is_able = flags.split_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
    let is_loaded =
        ["kvm_intel", "kvm_amd"].iter().any(|name| Path::new("/sys/module").join(name).exists());
    let is_ours = || File::options().read(true).write(true).open("/dev/kvm").is_ok();
    if is_able && is_loaded && is_ours() { "kvm" } else { "tcg" }
}

/// The processor: the host's own, or the one that is emulated in the least time, its translations in 128 MiB.
fn processor(accelerator: &str) -> [&'static str; 4] {
    match accelerator {
        "kvm" => ["-accel", "kvm", "-cpu", "host"],
        _ => ["-accel", "tcg,tb-size=128", "-cpu", "qemu64"],
    }
}

/// Kernel, mounts and page from the lines of a complete report.
fn read_report(console: &str) -> Result<(String, Vec<String>, String), TestkitError> {
    let lines = || console.lines().filter_map(|line| Some(line.split_once(MARK)?.1.trim()));
    let all = |what: &str| {
        let told = lines().filter_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        told.map(str::to_owned).collect::<Vec<_>>()
    };
    let one = |what: &str| {
        all(what).pop().ok_or_else(|| {
            let message = format!("the machine ended without telling its {what}");
            TestkitError::new(ErrorKind::Failed, message)
        })
    };
    if !lines().any(|line| line == "end") {
        let message = "the machine ended without a complete report";
        return Err(TestkitError::new(ErrorKind::Failed, message));
    }
    Ok((one("kernel")?, all("mount"), one("page")?))
}

/// Without what moves a terminal's cursor.
fn plain(text: &str) -> String {
    text.chars().filter(|char| *char == '\n' || !char.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_among_other_lines() {
        let console = "\u{1b}[2JGRUB starts\r\nreport kernel 6.1.0-1-cloud-amd64\r\n[  1.0] noise\r\n\
            report mount / ext4\r\nreport mount /boot/efi vfat\r\nreport page <h1>Release 2</h1>\r\nreport end\r\n";
        let (kernel, mounts, page) = read_report(console).expect("it is complete");
        assert_eq!(kernel, "6.1.0-1-cloud-amd64");
        assert_eq!(mounts, ["/ ext4", "/boot/efi vfat"]);
        assert_eq!(page, "<h1>Release 2</h1>");
    }

    #[test]
    fn half_a_report_is_none() {
        let error = read_report("report kernel 6.1\nKernel panic\n").expect_err("no end");
        assert!(error.to_string().contains("without a complete report"));
        let error = read_report("report kernel 6.1\nreport end\n").expect_err("no page");
        assert!(error.to_string().contains("page"));
    }
}
