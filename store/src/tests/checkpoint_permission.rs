//! Checkpoint permissions.

use attune_domain::id::ProjectId;
use sqlx::PgPool;

use crate::{
    db,
    error::StoreError,
    ids,
    jobs::checkpoint_permission::{self as permission, Page},
    tenancy::tenant,
    testing::seed,
};

const NAME: &str = "ft:tiny:default:mail:0190c2e1:ckpt-step-20";

#[sqlx::test(migrations = false)]
async fn a_project_with_access_finds_the_owner_and_no_other_does(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let other = tenant::ensure(&mut conn, "default", "other").await.unwrap();
    let elsewhere = tenant::ensure(&mut conn, "elsewhere", "default").await.unwrap();
    let stranger = elsewhere.project_id;
    let asked = [other.project_id, stranger];
    let refused = permission::first_stranger(&mut conn, other.organization_id, &asked).await.unwrap();
    assert_eq!(refused, Some(stranger));
    assert_eq!(permission::first_stranger(&mut conn, other.organization_id, &asked[..1]).await.unwrap(), None);

    let mut owner = db::tenant(&pool, seed.project_id).await.unwrap();
    let first = permission::grant(&mut owner, seed.project_id, NAME, &[other.project_id]).await.unwrap();
    let again = permission::grant(&mut owner, seed.project_id, NAME, &[other.project_id]).await.unwrap();
    assert_eq!(first, again, "to let one in twice is to let it in once");
    owner.commit().await.unwrap();

    let owner_for = async |project: ProjectId, name: &str| {
        let mut theirs = db::tenant(&pool, project).await.unwrap();
        permission::owner(&mut theirs, project, name).await.unwrap()
    };
    assert_eq!(owner_for(other.project_id, NAME).await, Some(seed.project_id));
    assert_eq!(owner_for(other.project_id, "ft:tiny:default:mail:0190c2e1:ckpt-step-40").await, None);
    assert_eq!(owner_for(stranger, NAME).await, None);

    let mut theirs = db::tenant(&pool, other.project_id).await.unwrap();
    let id = first[0].checkpoint_permission_id;
    let taken = permission::revoke(&mut theirs, seed.project_id, NAME, id).await;
    assert!(matches!(taken, Err(StoreError::NotFound(_))), "who was let in takes nothing back: {taken:?}");
    let passed_on = permission::grant(&mut theirs, seed.project_id, NAME, &[stranger]).await;
    assert!(passed_on.is_err(), "nor passes it on");
    drop(theirs);
    permission::revoke(&mut conn, seed.project_id, NAME, id).await.unwrap();
    assert_eq!(owner_for(other.project_id, NAME).await, None);
}

#[sqlx::test(migrations = false)]
async fn pages_of_permissions_meet_without_gap_or_overlap_both_ways(pool: PgPool) {
    let seed = seed(&pool).await.unwrap();
    let mut conn = pool.acquire().await.unwrap();
    let mut projects = Vec::new();
    for name in ["a", "b", "c"] {
        projects.push(tenant::ensure(&mut conn, "default", name).await.unwrap().project_id);
    }
    permission::grant(&mut conn, seed.project_id, NAME, &projects).await.unwrap();
    for ascending in [true, false] {
        let page = |after, limit| Page { granted_to: None, after, limit, ascending };
        let first = permission::list(&mut conn, seed.project_id, NAME, &page(None, 2)).await.unwrap();
        let after = Some(first[1].checkpoint_permission_id);
        let rest = permission::list(&mut conn, seed.project_id, NAME, &page(after, 9)).await.unwrap();
        let mut seen: Vec<_> = first.iter().chain(&rest).map(|permission| permission.granted_project_id).collect();
        if !ascending {
            seen.reverse();
        }
        assert_eq!(seen, projects);
    }
    let only = Page { granted_to: Some(projects[1]), limit: 9, ..Page::default() };
    assert_eq!(permission::list(&mut conn, seed.project_id, NAME, &only).await.unwrap().len(), 1);
    let none: ProjectId = ids::id();
    assert!(permission::list(&mut conn, none, NAME, &only).await.unwrap().is_empty());
}
