use vireo_model::Grow;

/// `auto`, or a length: a number of bytes, or one with K, M, G or T for powers of 1024.
pub(super) fn parse(text: &str) -> Result<Grow, String> {
    if text == "auto" {
        return Ok(Grow::Auto);
    }
    let units = [('K', 10), ('M', 20), ('G', 30), ('T', 40)];
    let unit = units.iter().find(|(unit, _)| text.to_ascii_uppercase().ends_with(*unit));
    let number = unit.map_or(text, |_| &text[..text.len() - 1]);
    let number: Option<u64> = number.parse().ok();
    let len = number.and_then(|number| number.checked_mul(1 << unit.map_or(0, |(_, bits)| *bits)));
    len.map(Grow::To).ok_or_else(|| "neither auto nor a size such as 20G or 512M".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_and_nothing_else_is_one() {
        assert_eq!(parse("auto"), Ok(Grow::Auto));
        assert_eq!(parse("512"), Ok(Grow::To(512)));
        assert_eq!(parse("20g"), Ok(Grow::To(20 << 30)));
        for text in ["", "G", "-1G", "1.5G", "20GB", "20000000T", "\u{fc}", "AUTO"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
