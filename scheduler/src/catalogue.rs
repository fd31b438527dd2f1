//! The catalogue of instance types, as last read: offers that name an entry are filled from it.

use std::sync::{Arc, Mutex, PoisonError};

use attune_domain::catalogue::{Catalogue, built_in};
use attune_store::{catalogue, error::StoreError};
use sqlx::PgConnection;

/// The catalogue that all providers share. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct SharedCatalogue(Arc<Mutex<Known>>);

#[derive(Debug)]
struct Known {
    /// The version of the administrators' changes; `None`: they were not read yet.
    version: Option<String>,
    catalogue: Arc<Catalogue>,
}

impl Default for SharedCatalogue {
    /// Creates the catalogue of this version, without the administrators' changes.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Known { version: None, catalogue: Arc::new(built_in().clone()) })))
    }
}

impl SharedCatalogue {
    /// Returns the catalogue as last read.
    pub(crate) fn get(&self) -> Arc<Catalogue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).catalogue.clone()
    }

    /// Reads the administrators' changes if there are any since the last time.
    ///
    /// # Errors
    /// [`StoreError::Database`], [`StoreError::Corrupt`]: the catalogue stays as it is.
    pub(crate) async fn refresh(&self, conn: &mut PgConnection) -> Result<(), StoreError> {
        // Before the entries: a change between the two is read by the next call.
        let version = Some(catalogue::version(conn).await?);
        if self.0.lock().unwrap_or_else(PoisonError::into_inner).version == version {
            return Ok(());
        }
        let catalogue = Arc::new(catalogue::load(conn).await?);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Known { version, catalogue };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use attune_domain::catalogue::{EntryId, InstanceType};
    use attune_store::{
        db::{self, Tenant},
        tenancy::tenant,
        testing,
    };
    use sqlx::PgPool;

    use super::*;

    #[sqlx::test(migrations = false)]
    async fn a_change_of_an_administrator_is_read_without_a_restart(pool: PgPool) {
        testing::seed(&pool).await.unwrap();
        let mut conn = pool.acquire().await.unwrap();
        let organization = tenant::ensure(&mut conn, "default", "default").await.unwrap().organization_id;
        let shared = SharedCatalogue::default();
        shared.refresh(&mut conn).await.unwrap();
        let before = shared.get();
        assert_eq!(before.instances.len(), built_in().instances.len());
        shared.refresh(&mut conn).await.unwrap();
        assert!(Arc::ptr_eq(&before, &shared.get()), "without a change, the entries are not read again");

        let id: EntryId = "aws.g6.xlarge.us-east-1".parse().unwrap();
        let cheaper = InstanceType { usd_per_hour: 0.5, ..built_in().instance(&id).unwrap().clone() };
        let mut tx = db::scoped(&pool, Tenant::Organization(organization), None).await.unwrap();
        db::as_installation(&mut tx).await.unwrap();
        catalogue::set(&mut tx, &cheaper).await.unwrap();
        tx.commit().await.unwrap();
        let copy = shared.clone();
        shared.refresh(&mut conn).await.unwrap();
        assert_eq!(copy.get().instance(&id), Some(&cheaper), "the providers have copies");
    }
}
