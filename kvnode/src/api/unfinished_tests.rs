use std::{future::poll_fn, time::Duration};

use futures::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::api::{
    limits::{Limit, REQUEST_BYTES_PER_CONNECTION_MAX},
    quota::{Capacity, ConnectionQuota, NodeQuota, Refusals},
};

fn message(bytes: usize) -> Vec<u8> {
    let length = u32::try_from(bytes).expect("short").to_be_bytes();
    [&[0], &length[..], &vec![7; bytes]].concat()
}

fn connection() -> (Arc<NodeQuota>, Arc<ConnectionQuota>) {
    let node = NodeQuota::new(&Capacity::default(), Refusals::default());
    let connection = ConnectionQuota::new(&node, ([127, 0, 0, 1], 9).into()).expect("room");
    (node, connection)
}

fn of(connection: &Arc<ConnectionQuota>, until: Until) -> Unfinished {
    Unfinished::new(connection.request(Limit::Requests).expect("room"), until)
}

fn asks(unfinished: &mut Unfinished) -> Option<Result<(), Refused>> {
    poll_fn(|context| unfinished.poll_room(context)).now_or_never()
}

proptest! {
    #[test]
    fn the_ends_of_messages_are_seen_however_they_are_cut(
        messages in prop::collection::vec(0_usize..40, 0..20),
        cuts in prop::collection::vec(1_usize..30, 1..100),
        tail in 0_usize..30,
    ) {
        let mut bytes: Vec<u8> = messages.iter().flat_map(|bytes| message(*bytes)).collect();
        let whole = bytes.len();
        bytes.extend_from_slice(&message(30)[..tail]);
        let (mut framing, mut rest) = (Framing::default(), &bytes[..]);
        let mut ends = vec![0];
        messages.iter().for_each(|bytes| ends.push(ends[ends.len() - 1] + bytes + PREFIX_BYTES));
        for cut in cuts.iter().cycle() {
            let (some, more) = rest.split_at(rest.len().min(*cut));
            framing.take(some);
            rest = more;
            let came = bytes.len() - rest.len();
            let end = ends.iter().rfind(|end| **end <= came).expect("the beginning");
            prop_assert_eq!(framing.unfinished, came - end);
            if rest.is_empty() {
                break;
            }
        }
        prop_assert_eq!(framing.unfinished, bytes.len() - whole);
    }
}

#[tokio::test]
async fn the_rest_of_a_message_counts_until_it_is_whole_or_the_next_one_is_asked_for() {
    let (node, connection) = connection();
    let taken = || node.pool(Limit::RequestBytes).taken;
    let bytes = message(4 * UNFINISHED_FREE_BYTES);
    let (first, last) = bytes.split_at(3 * UNFINISHED_FREE_BYTES);
    for until in [Until::Whole, Until::Next] {
        let mut unfinished = of(&connection, until);
        unfinished.came(&message(1_000));
        unfinished.came(&first[..UNFINISHED_FREE_BYTES - 2_000]);
        assert_eq!(taken(), 0, "the first bytes are counted elsewhere");
        assert!(asks(&mut unfinished).is_some_and(|room| room.is_ok()));
        unfinished.came(&first[UNFINISHED_FREE_BYTES - 2_000..]);
        assert_eq!(taken(), 2 * UNFINISHED_FREE_BYTES);
        unfinished.came(last);
        let whole = if until == Until::Whole { 0 } else { bytes.len() - UNFINISHED_FREE_BYTES };
        assert_eq!(taken(), whole);
        assert!(asks(&mut unfinished).is_some_and(|room| room.is_ok()));
        assert_eq!(taken(), 0);
        unfinished.came(first);
        assert_eq!(taken(), 2 * UNFINISHED_FREE_BYTES);
        drop(unfinished);
        assert_eq!(taken(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn when_the_node_is_full_a_message_waits_for_room_and_is_refused_at_last() {
    let (node, connection) = connection();
    let held = connection.hold(REQUEST_BYTES_PER_CONNECTION_MAX).expect("room");
    let mut unfinished = of(&connection, Until::Whole);
    unfinished.came(&message(4 * UNFINISHED_FREE_BYTES)[..2 * UNFINISHED_FREE_BYTES]);
    assert!(asks(&mut unfinished).is_none(), "nothing more is read");
    let waits = poll_fn(|context| unfinished.poll_room(context));
    let (room, ()) = tokio::join!(waits, async {
        tokio::time::sleep(DEADLINE_DEFAULT - Duration::from_millis(1)).await;
        drop(held);
    });
    assert!(room.is_ok(), "{room:?}");
    assert_eq!(node.pool(Limit::RequestBytes).taken, UNFINISHED_FREE_BYTES);

    let _held = connection.hold(REQUEST_BYTES_PER_CONNECTION_MAX - UNFINISHED_FREE_BYTES).expect("room");
    unfinished.came(&[7]);
    let began = Instant::now();
    let room = poll_fn(|context| unfinished.poll_room(context)).await;
    assert!(matches!(room, Err(Refused::Limit("REQUEST_BYTES_IN_FLIGHT"))), "{room:?}");
    assert_eq!(began.elapsed(), DEADLINE_DEFAULT);
}
