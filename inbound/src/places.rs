//! Connection limits, in total and for each client address.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, PoisonError},
};

/// The length of an IPv6 prefix that counts as one client: the holder of an IPv6 address usually controls its whole
/// /64.
const NETWORK_BITS: u32 = 64;

/// The connection limits and the current counts.
#[derive(Debug, Clone)]
pub(crate) struct Places {
    taken: Arc<Mutex<Taken>>,
    most: usize,
    most_per_address: usize,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// A slot for one connection, freed when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    taken: Arc<Mutex<Taken>>,
    client: IpAddr,
}

impl Places {
    pub(crate) fn new(most: usize, most_per_address: usize) -> Self {
        Self { taken: Arc::default(), most, most_per_address }
    }

    /// Reserves a slot for a connection from this address; `None`: a limit is reached.
    pub(crate) fn take(&self, address: IpAddr) -> Option<Place> {
        let client = client(address);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_client = taken.by_client.get(&client).copied().unwrap_or(0);
        if taken.all >= self.most || of_client >= self.most_per_address {
            return None;
        }
        taken.all += 1;
        taken.by_client.insert(client, of_client + 1);
        Some(Place { taken: self.taken.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        let left = taken.by_client.get(&self.client).map_or(0, |count| count.saturating_sub(1));
        if left == 0 {
            taken.by_client.remove(&self.client);
        } else {
            taken.by_client.insert(self.client, left);
        }
    }
}

/// Returns the address by which clients are counted.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !(u128::MAX >> NETWORK_BITS)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_of_places_holds_in_all_and_for_each_client() {
        let places = Places::new(3, 2);
        let take = |text: &str| places.take(text.parse().unwrap());
        let first = [take("10.0.0.1"), take("::ffff:10.0.0.1")];
        assert!(first.iter().all(Option::is_some));
        assert!(take("10.0.0.1").is_none(), "the client has two");
        let other = take("2001:db8::1").unwrap();
        assert!(take("2001:db8::2").is_none(), "three are taken in all");
        drop(first);
        let more = take("2001:db8::2").unwrap();
        assert!(take("2001:db8::3").is_none(), "its network has two");
        drop((other, more));
        assert!(places.taken.lock().unwrap().by_client.is_empty());
    }
}
