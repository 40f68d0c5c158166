//! The byte report against the allocator.

mod common;

use common::*;
use kv_cache_quant::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// What this thread holds; what others allocate meanwhile does not count.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.set(HELD.get().wrapping_add(layout.size()));
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().wrapping_sub(layout.size()));
        // SAFETY: the pointer came from `alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_report_is_what_the_allocator_saw() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        for case in cases() {
            let g = geometry(64);
            let data = rows(g, 500, 50);
            let mut cache = (case.make)(g, KeyStorage::PostRope, case.policy);
            let static_bytes = cache.bytes().auxiliary;
            let empty = HELD.get();
            for tokens in [1, 2, 30, 63, 64, 65, 130, 500] {
                let from = cache.len();
                append(&mut cache, &data, from..tokens);
                let held = (HELD.get().wrapping_sub(empty)) as u64 + static_bytes;
                assert_eq!(cache.bytes().total(), held, "{}: {tokens} tokens", case.name);
            }
            cache.truncate(40).unwrap();
            let held = (HELD.get().wrapping_sub(empty)) as u64 + static_bytes;
            assert_eq!(cache.bytes().total(), held, "{}: cut to 40 tokens", case.name);
        }
    });
}
