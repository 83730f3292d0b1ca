//! Allocated ranges and differences, and writes that go on elsewhere.

use super::*;

const BLOCK: u64 = 4096;

impl Api {
    async fn snap(&mut self, name: &str, tag: &str) -> Vdi {
        let request = SnapshotVdiRequest { name: name.into(), tag: tag.into(), ..Default::default() };
        self.vdis.snapshot(request).await.unwrap().into_inner().snapshot.unwrap()
    }

    async fn messages(&mut self, request: DiffRequest) -> Result<Vec<RangesReply>, Status> {
        let stream = if request.since.is_empty() {
            let DiffRequest { name, starting_offset, max_results, contents, .. } = request;
            let request = AllocatedRequest { name, starting_offset, max_results, contents, id: 0 };
            self.vdis.allocated(request).await
        } else {
            self.vdis.diff(request).await
        };
        let mut stream = stream?.into_inner();
        let mut all = Vec::new();
        while let Some(message) = stream.message().await? {
            all.push(message);
        }
        Ok(all)
    }

    /// Offset, length and whether it is zeros.
    async fn ranges(&mut self, name: &str, since: &str, offset: u64) -> Vec<(u64, u64, bool)> {
        let request = DiffRequest {
            name: name.into(),
            since: since.into(),
            starting_offset: offset,
            ..Default::default()
        };
        let messages = self.messages(request).await.unwrap();
        let ranges = messages.iter().flat_map(|message| &message.ranges);
        ranges.map(|range| (range.offset, range.length, range.zero)).collect()
    }
}

#[tokio::test]
async fn what_differs_is_told_with_or_without_contents() {
    let mut api = api().await;
    let disk = api.create("disk", MIB + 512).await.unwrap();
    let zeros = WriteVdiRequest { name: "disk".into(), zeroes: MIB + 512, ..Default::default() };
    api.vdis.write(tokio_stream::iter([zeros])).await.unwrap();
    api.write("disk", BLOCK, &[&[1; 3 * BLOCK as usize]]).await.unwrap();
    let one = api.snap("disk", "one").await;
    api.write("disk", 2 * BLOCK, &[&[2; BLOCK as usize], &[0; BLOCK as usize]]).await.unwrap();
    api.write("disk", MIB, &[&[3; 512]]).await.unwrap();
    let two = api.snap("disk", "two").await;
    let block = |first: u64, blocks: u64, zero| (first * BLOCK, blocks * BLOCK, zero);
    let pieces = |ranges: &[(u64, u64, bool)]| -> Vec<(u64, u64, bool)> {
        // The fake looks at five blocks at a time; neighbours stay apart.
        ranges
            .iter()
            .flat_map(|(at, len, zero)| {
                (0..len.div_ceil(BLOCK)).map(move |i| (at + i * BLOCK, (len - i * BLOCK).min(BLOCK), *zero))
            })
            .collect()
    };
    let end = (MIB, 512, false);
    assert_eq!(api.ranges("disk@one", "", 0).await, pieces(&[block(1, 3, false)]));
    assert_eq!(api.ranges("disk@two", "", 0).await, pieces(&[block(1, 2, false), end]));
    let changed = [block(2, 1, false), block(3, 1, true), end];
    for since in ["one", "disk@one"] {
        assert_eq!(api.ranges("disk@two", since, 0).await, changed);
        assert_eq!(api.ranges("disk", since, 3 * BLOCK).await, changed[1..]);
    }
    // Few at a time, and with contents.
    let request = DiffRequest {
        name: "disk@two".into(),
        since: "one".into(),
        max_results: 1,
        contents: true,
        ..Default::default()
    };
    let messages = api.messages(request).await.unwrap();
    assert!(messages.iter().all(|message| message.ranges.len() <= 1 && message.size_bytes == MIB + 512));
    assert!(messages.windows(2).all(|pair| pair[0].done <= pair[1].done));
    assert_eq!(messages.last().unwrap().done, MIB + 512);
    let (vdi, since) = (messages[0].vdi.as_ref().unwrap(), messages[0].since.as_ref().unwrap());
    assert_eq!((vdi.id, vdi.source_id, since.id), (two.id, disk.id, one.id));
    let ranges: Vec<&Range> = messages.iter().flat_map(|message| &message.ranges).collect();
    let contents: Vec<&[u8]> = ranges.iter().map(|range| range.data.as_slice()).collect();
    assert_eq!(contents, [&[2; BLOCK as usize][..], &[], &[3; 512]]);
    // Everything is closed again.
    for name in ["disk@one", "disk@two", "disk"] {
        api.delete(name).await.unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_compared_is_refused() {
    let mut api = api().await;
    api.fake.add_other();
    api.create("disk", MIB).await.unwrap();
    api.snap("disk", "one").await;
    api.create("other", MIB).await.unwrap();
    let request = |name: &str, since: &str, starting_offset| DiffRequest {
        name: name.into(),
        since: since.into(),
        starting_offset,
        ..Default::default()
    };
    for (request, code) in [
        (request("disk", "none", 0), Code::NotFound),
        (request("nothing", "one", 0), Code::NotFound),
        (request("disk", "one", MIB + 512), Code::InvalidArgument),
        (request("disk", "one", 100), Code::InvalidArgument),
        (request("disk", "", MIB + 512), Code::InvalidArgument),
    ] {
        let text = format!("{request:?}");
        assert_eq!(api.messages(request).await.unwrap_err().code(), code, "{text}");
    }
    let locked = api.create("locked", MIB).await.unwrap();
    api.lock_elsewhere(&locked);
    let error = api.messages(request("locked", "", 0)).await.unwrap_err();
    assert!(error.metadata().contains_key(ASK_NODE), "{error:?}");
}

#[tokio::test]
async fn writes_go_on_elsewhere_and_leave_zeros() {
    let mut api = api().await;
    api.fake.be_lazy();
    api.create("disk", 4 * MIB).await.unwrap();
    let ones = vec![1; 4 * MIB as usize];
    api.write("disk", 0, &[&ones[..2 << 20], &ones[2 << 20..]]).await.unwrap();
    let mut expected = ones;
    let message = |seek: Option<u64>, data: &[u8], zeroes| WriteVdiRequest {
        name: "disk".into(),
        offset: 100,
        data: data.to_vec(),
        seek,
        zeroes,
    };
    let messages = [
        message(None, &[2; 50], 10),
        message(Some(700), &[3; 5000], 0),
        message(None, &[4; 10], 2 << 20),
        message(Some(10), &[5; 3], 2),
        message(Some(4 * MIB - 5), &[6; 5], 0),
    ];
    expected[100..150].fill(2);
    expected[150..160].fill(0);
    expected[700..5700].fill(3);
    expected[5700..5710].fill(4);
    expected[5710..5710 + (2 << 20)].fill(0);
    expected[10..13].fill(5);
    expected[13..15].fill(0);
    expected[4 * MIB as usize - 5..].fill(6);
    let bytes = api.vdis.write(tokio_stream::iter(messages)).await.unwrap().into_inner().bytes;
    assert_eq!(bytes, 50 + 10 + 5000 + 10 + (2 << 20) + 5 + 5);
    assert!(api.read("disk", 0, 0).await.unwrap() == expected);
    for bad in
        [message(Some(4 * MIB + 1), &[], 0), message(Some(4 * MIB), &[1], 0), message(None, &[], 4 * MIB)]
    {
        let messages = [message(None, &[], 0), bad];
        let error = api.vdis.write(tokio_stream::iter(messages)).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    }
}

/// Nobody carries out two requests in order unless the second one comes after the answer to the first.
#[tokio::test]
async fn who_goes_back_finds_what_was_written_before() {
    const SIZE: usize = 2 << 20;
    let mut api = api().await;
    api.fake.be_lazy();
    api.create("disk", SIZE as u64).await.unwrap();
    let mut expected = vec![0xee; SIZE];
    let (mut messages, mut written) = (Vec::new(), 0);
    let mut seed = 7u64;
    let mut draw = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    for fill in 1..=60u8 {
        // Near each other, so that they meet in sectors, or lie over each other.
        let at = draw(6000);
        let (len, zeroes) = (draw(3000), draw(2) * draw(3000));
        expected[at..at + len].fill(fill);
        expected[at + len..at + len + zeroes].fill(0);
        written += (len + zeroes) as u64;
        messages.push(WriteVdiRequest {
            name: "disk".into(),
            offset: at as u64,
            data: vec![fill; len],
            seek: (fill > 1).then_some(at as u64),
            zeroes: zeroes as u64,
        });
    }
    let bytes = api.vdis.write(tokio_stream::iter(messages)).await.unwrap().into_inner().bytes;
    assert_eq!(bytes, written);
    assert!(api.read("disk", 0, 0).await.unwrap() == expected);
}
