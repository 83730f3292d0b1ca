//! Parsing of option data. Pure functions; the lengths inside are the client's and never trusted.

use super::proto::{INFO_DESCRIPTION, INFO_NAME, STRING_MAX};

/// The data of INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct InfoOption {
    pub(crate) export: String,
    pub(crate) wants: InfoWants,
}

/// Information the client asked for, of that which is not sent anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InfoWants {
    pub(crate) name: bool,
    pub(crate) description: bool,
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MetaOption {
    pub(crate) export: String,
    pub(crate) queries: Vec<String>,
}

/// Text as the protocol allows it: short UTF-8 without NUL.
pub(crate) fn text(bytes: &[u8]) -> Option<String> {
    if bytes.len() > STRING_MAX || bytes.contains(&0) {
        return None;
    }
    core::str::from_utf8(bytes).ok().map(str::to_owned)
}

pub(crate) fn parse_info(mut data: &[u8]) -> Option<InfoOption> {
    let export = take_string(&mut data)?;
    let count = u16::from_be_bytes(*take(&mut data)?);
    if data.len() != usize::from(count) * 2 {
        return None;
    }
    let mut wants = InfoWants::default();
    while let Some(kind) = take(&mut data) {
        match u16::from_be_bytes(*kind) {
            INFO_NAME => wants.name = true,
            INFO_DESCRIPTION => wants.description = true,
            _ => {} // what is unknown is to be ignored, the rest is always sent
        }
    }
    Some(InfoOption { export, wants })
}

pub(crate) fn parse_meta(mut data: &[u8]) -> Option<MetaOption> {
    let export = take_string(&mut data)?;
    let count = u32::from_be_bytes(*take(&mut data)?);
    let mut queries = Vec::new();
    // Every query takes four bytes of data or more, so the data bounds the loop, not the count.
    for _ in 0..count {
        let query = take_string(&mut data)?;
        if !query.contains(':') {
            return None;
        }
        queries.push(query);
    }
    data.is_empty().then_some(MetaOption { export, queries })
}

fn take<'a, const N: usize>(data: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (first, rest) = data.split_first_chunk()?;
    *data = rest;
    Some(first)
}

fn take_string(data: &mut &[u8]) -> Option<String> {
    let len = u32::from_be_bytes(*take(data)?);
    let (string, rest) = data.split_at_checked(usize::try_from(len).ok()?)?;
    *data = rest;
    text(string)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn info() {
        let want = InfoOption { export: "ab".into(), wants: InfoWants { name: true, description: false } };
        assert_eq!(parse_info(b"\0\0\0\x02ab\0\x02\0\x01\0\x63"), Some(want));
        assert_eq!(parse_info(b"\0\0\0\0\0\0").unwrap().export, "");
        let bad: [&[u8]; 7] = [
            b"",
            b"\0\0\0\x02a\0\0",
            b"\0\0\0\x02ab\0\x01",
            b"\0\0\0\x02ab\0\0\0",
            b"\xff\xff\xff\xffab\0\0",
            b"\0\0\0\x02a\0\0\0",
            b"\0\0\0\x02\xff\xff\0\0",
        ];
        for bad in bad {
            assert_eq!(parse_info(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn meta() {
        let got = parse_meta(b"\0\0\0\x01x\0\0\0\x02\0\0\0\x05base:\0\0\0\x03a:b").unwrap();
        assert_eq!(got, MetaOption { export: "x".into(), queries: vec!["base:".into(), "a:b".into()] });
        assert_eq!(parse_meta(b"\0\0\0\0\0\0\0\0").unwrap().queries.len(), 0);
        let bad: [&[u8]; 5] = [
            b"\0\0\0\x01x",
            b"\0\0\0\x01x\0\0\0\x01",
            b"\0\0\0\x01x\xff\xff\xff\xff\0\0\0\x02a:",
            b"\0\0\0\x01x\0\0\0\x01\0\0\0\x04base",
            b"\0\0\0\0\0\0\0\0\0",
        ];
        for bad in bad {
            assert_eq!(parse_meta(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn long_names_are_refused() {
        assert!(text(&[b'x'; STRING_MAX]).is_some());
        assert!(text(&[b'x'; STRING_MAX + 1]).is_none());
    }
}
