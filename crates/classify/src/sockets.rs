//! What processes listen on, out of `/proc/PID/net` (`proc_pid_net(5)`).
//!
//! Names are for comparing one moment with another: addresses that the kernel or a program makes
//! up anew each time are told apart by kind alone.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// From here on the kernel gives out ports by itself (`ip_local_port_range`, ip(7)): they differ
/// from one start to the next.
const EPHEMERAL_PORT_MIN: u16 = 32_768;

/// State of a TCP socket that listens (`TCP_LISTEN` of the kernel).
const TCP_LISTEN: &str = "0A";
/// State of a UDP socket that is bound and takes from everybody (`TCP_CLOSE`).
const UDP_OPEN: &str = "07";
/// The flag of a Unix socket that accepts connections (`__SO_ACCEPTCON`).
const ACCEPTS: u64 = 0x1_0000;

/// The listening sockets in the content of `/proc/PID/net/NAME`, with NAME one of `tcp`, `tcp6`,
/// `udp`, `udp6` and `unix`: inode numbers, as `/proc/PID/fd` shows them, and names for people.
///
/// ```
/// use vireo_classify::listening_sockets;
///
/// let tcp = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
///    0: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0\n";
/// assert_eq!(listening_sockets("tcp", tcp)[&4711], "tcp 127.0.0.1:80");
/// ```
#[must_use]
pub fn listening_sockets(name: &str, content: &[u8]) -> BTreeMap<u64, String> {
    let text = String::from_utf8_lossy(content);
    let lines = text.lines().skip(1);
    if name == "unix" {
        return lines.filter_map(unix_socket).collect();
    }
    lines.filter_map(|line| inet_socket(name, line)).collect()
}

fn inet_socket(name: &str, line: &str) -> Option<(u64, String)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
    let wanted = if name.starts_with("tcp") { TCP_LISTEN } else { UDP_OPEN };
    if *state != wanted {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let inode = inode.parse().ok()?;
    let protocol = name.trim_end_matches('6');
    if port >= EPHEMERAL_PORT_MIN {
        return Some((inode, format!("{protocol} at a port of the kernel's choice")));
    }
    Some((inode, format!("{protocol} {}:{port}", address_of(address)?)))
}

/// Words of 32 bits in the machine's own byte order, each in hexadecimal.
fn address_of(text: &str) -> Option<String> {
    let words = text.as_bytes().chunks(8).map(|word| {
        let word = std::str::from_utf8(word).ok()?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    });
    let bytes = words.collect::<Option<Vec<[u8; 4]>>>()?.concat();
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes.as_slice()) {
        return Some(Ipv4Addr::from(bytes).to_string());
    }
    let bytes = <[u8; 16]>::try_from(bytes.as_slice()).ok()?;
    Some(format!("[{}]", Ipv6Addr::from(bytes)))
}

fn unix_socket(line: &str) -> Option<(u64, String)> {
    // Num RefCount Protocol Flags Type St Inode Path; a path may have blanks.
    let mut fields = line.split_whitespace();
    let flags = u64::from_str_radix(fields.nth(3)?, 16).ok()?;
    let inode = fields.nth(2)?.parse().ok()?;
    let path = fields.next()?;
    (flags & ACCEPTS != 0).then(|| (inode, format!("unix {}", without_numbers(path))))
}

/// Process numbers and random digits in a name differ from one start to the next.
fn without_numbers(path: &str) -> String {
    let mut name = String::with_capacity(path.len());
    for c in path.chars() {
        match (c.is_ascii_digit(), name.ends_with('#')) {
            (true, true) => {}
            (true, false) => name.push('#'),
            (false, _) => name.push(c),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_is_told_from_what_is_connected() {
        let tcp = b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 11 1 0\n\
            1: 0100007F:0016 0100007F:9C40 01 00000000:00000000 00:00000000 00000000 0 0 12 1 0\n\
            2: 00000000:E000 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 13 1 0\n\
            broken\n";
        let found = listening_sockets("tcp", tcp);
        assert_eq!(found.len(), 2);
        assert_eq!(found[&11], "tcp 0.0.0.0:22");
        assert_eq!(found[&13], "tcp at a port of the kernel's choice");
    }

    #[test]
    fn the_other_kinds_have_their_own_states_and_forms() {
        let udp6 = b"header\n 9: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 \
            07 00000000:00000000 00:00000000 00000000 0 0 21 2 0 0\n";
        assert_eq!(listening_sockets("udp6", udp6)[&21], "udp [::1]:53");
        let unix = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0: 00000002 00000000 00010000 0001 01 31 /run/app/8123.sock\n\
            0: 00000003 00000000 00000000 0001 03 32 /run/app/8123.sock\n\
            0: 00000002 00000000 00010000 0001 01 33\n";
        let found = listening_sockets("unix", unix);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [(31, "unix /run/app/#.sock".to_owned())]
        );
    }
}
