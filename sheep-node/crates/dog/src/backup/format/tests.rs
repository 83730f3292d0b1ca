//! Whatever is done to a stream, nothing wrong comes out of it.

use super::*;

fn header() -> Header {
    Header {
        cluster: "0123456789abcdef".into(),
        volume: 7,
        snapshot: 9,
        base: Some(8),
        size: 8 << 20,
        created_unix_ms: 1_700_000_000_000,
        name: "disk@two".into(),
        base_name: "disk@one".into(),
    }
}

fn records() -> Vec<Record> {
    vec![
        Record { offset: 4096, body: Body::Data(vec![1; 8192]) },
        Record { offset: 12288, body: Body::Zeros(1 << 20) },
        Record { offset: 4 << 20, body: Body::Data(vec![2; 512]) },
    ]
}

fn stream() -> Vec<u8> {
    let mut writer = Writer::new(Vec::new(), &header()).unwrap();
    records().iter().for_each(|record| writer.put(record).unwrap());
    let (bytes, length) = writer.finish().unwrap();
    assert_eq!(bytes.len() as u64, length);
    bytes
}

/// What comes out before an error, and whether there is one.
fn read(bytes: &[u8]) -> (Vec<Record>, Option<String>) {
    let mut all = Vec::new();
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (all, Some(error.to_string())),
    };
    assert_eq!(reader.header, header());
    loop {
        match reader.next() {
            Ok(Some(record)) => all.push(record),
            Ok(None) => return (all, None),
            Err(error) => return (all, Some(error.to_string())),
        }
    }
}

#[test]
fn what_goes_in_comes_out() {
    let bytes = stream();
    assert_eq!(read(&bytes), (records(), None));
    // The format stays what it is.
    assert_eq!(&bytes[..16], b"SHDPBKUP\x01\0\0\0\x52\0\0\0");
    assert_eq!(bytes.len(), 16 + 0x52 + 4 * 32 + 8192 + 512 + 32);
}

#[test]
fn a_stream_that_was_cut_has_no_end() {
    let bytes = stream();
    for length in 0..bytes.len() {
        let (some, error) = read(&bytes[..length]);
        assert!(error.is_some() && records().starts_with(&some), "{length}");
    }
}

#[test]
fn every_changed_bit_is_seen() {
    let bytes = stream();
    for at in (0..bytes.len()).filter(|at| *at < 200 || *at % 97 == 0 || *at + 700 > bytes.len()) {
        for bit in [0, 5] {
            let mut bad = bytes.clone();
            bad[at] ^= 1 << bit;
            let (some, error) = read(&bad);
            assert!(error.is_some() && records().starts_with(&some), "{at} {bit}");
        }
    }
}

#[test]
fn records_that_are_left_out_or_moved_are_seen() {
    let bytes = stream();
    let first = 16 + 0x52;
    let (second, third) = (first + 32 + 8192, first + 32 + 8192 + 32);
    let without = [&bytes[..second], &bytes[third..]].concat();
    assert_eq!(read(&without).0, records()[..1]);
    let twice = [&bytes[..third], &bytes[second..]].concat();
    assert_eq!(read(&twice).0, records()[..2]);
    let exchanged = [&bytes[..first], &bytes[second..third], &bytes[first..second], &bytes[third..]].concat();
    assert!(read(&exchanged).0.is_empty());
}

#[test]
fn a_stream_that_broke_off_is_continued() {
    let whole = stream();
    for length in [16 + 0x52, 16 + 0x52 + 40, 16 + 0x52 + 32 + 8192, whole.len() - 1] {
        let mut reader = Reader::new(&whole[..length]).unwrap();
        let mut had = 0;
        while let Ok(Some(_)) = reader.next() {
            had += 1;
        }
        assert!(!reader.ended);
        let state = reader.state.clone();
        let mut writer = Writer::resume(whole[..state.length as usize].to_vec(), state);
        records().iter().skip(had).for_each(|record| writer.put(record).unwrap());
        assert!(writer.finish().unwrap().0 == whole, "{length}");
    }
}
